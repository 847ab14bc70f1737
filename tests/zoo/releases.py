"""Weights as their authors publish them."""

from torch import Tensor, nn


def released(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of MCUNet with norms under the names that its authors' file has them by."""
    parts = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
    found = {}
    for key, value in model.state_dict().items():
        *place, layer, leaf = key.split(".")
        stem = layer.removesuffix("_norm")
        kind = "bn" if layer.endswith("_norm") else "conv"
        if stem == "classifier":
            found[f"classifier.linear.{leaf}"] = value
        elif stem == "first_conv":
            found[f"first_conv.{kind}.{leaf}"] = value
        else:
            found[".".join([*place, "mobile_inverted_conv", parts[stem], kind, leaf])] = value
    return found
