"""MCUNet's public ImageNet weights: the file of its authors, in the names of this library's network.

Source: Lin et al., NeurIPS 2020; the release `mcunet-5fps_imagenet`, which the authors' package calls `mcunet-in1`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tuckprop.errors import DataError
from tuckprop.zoo._hub_file import dropping_damaged

URL = "https://hanlab18.mit.edu/projects/tinyml/mcunet/release/mcunet-5fps_imagenet.pth"
# PyTorch's default, which the release's configuration has too.
_EPS = 1e-5
_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}
_STATISTICS = ("running_mean", "running_var", "weight", "bias")


def download() -> Mapping[str, Tensor]:
    """Return the release's state dict; the first call downloads it into PyTorch's cache of weights.

    Raises:
        DataError: The file is cut short, damaged or another; the next call downloads it anew.
        Exception: Whatever the download raises.
    """
    with dropping_damaged(URL):
        found = torch.hub.load_state_dict_from_url(URL, map_location="cpu", progress=False, weights_only=True)
        state: Mapping[str, Tensor] = found["state_dict"]
    return state


def renamed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the release's tensors under the names of `MCUNet(norm=True)`.

    Args:
        given: As `download` returns it.

    Raises:
        DataError: A name is none of the release's.
    """
    return {_rename(name): value for name, value in given.items()}


def folded(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `renamed` does for `MCUNet(norm=False)`: the norms, in eval mode, are folded into the convolutions.

    Args:
        given: As `download` returns it.

    Raises:
        DataError: A name is none of the release's, or a norm is incomplete.
    """
    state = renamed(given)
    norms = [name.removesuffix("_norm.running_mean") for name in state if name.endswith("_norm.running_mean")]
    found = {name: value for name, value in state.items() if "_norm." not in name}
    for name in norms:
        try:
            mean, variance, weight, bias = (state[f"{name}_norm.{part}"] for part in _STATISTICS)
            convolution = state[f"{name}.weight"]
        except KeyError as error:
            raise DataError(f"{URL}: expected the batch norm of {name} to be whole, {error} is missing") from error
        fused = fuse_conv_bn_weights(convolution, None, mean, variance, _EPS, weight, bias)
        found[f"{name}.weight"], found[f"{name}.bias"] = (tensor.detach() for tensor in fused)
    return found


def _rename(name: str) -> str:
    match name.split("."):
        case ["first_conv", kind, leaf]:
            place = "first_conv"
        case ["blocks", number, "mobile_inverted_conv", part, kind, leaf] if part in _PARTS:
            place = f"blocks.{number}.{_PARTS[part]}"
        case ["classifier", "linear", leaf]:
            return f"classifier.{leaf}"
        case _:
            kind = place = leaf = ""
    if kind not in {"conv", "bn"}:
        raise DataError(f"{URL}: expected the tensors of mcunet-in1, got {name!r}; use --weights FILE instead")
    return f"{place}.{leaf}" if kind == "conv" else f"{place}_norm.{leaf}"
