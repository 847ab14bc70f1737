"""Put batch norms back into MCUNet, whose public weights have them folded into the convolutions.

A folded network computes what the original does but trains otherwise: a step of SGD depends on the scale of each
filter, and folding multiplies the filters by `weight / deviation`. The paper trains the network with its norms, frozen
in eval mode. They cannot be had back exactly; this puts in norms whose statistics are those of the images it is given,
behind filters of the norm that He's initialisation gives, so that the network computes the same.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tuckprop.errors import ConfigError
from tuckprop.zoo.mcunet import MCUNet


@torch.no_grad()
def unfold(folded: MCUNet, images: Iterable[Tensor]) -> MCUNet:
    """Return MCUNet with batch norms that computes, in eval mode, what `folded` computes.

    Args:
        folded: MCUNet without norms.
        images: Batches [batch, channels, height, width] whose mean and variance the norms take as running statistics.

    Returns:
        A new network, in eval mode.

    Raises:
        ConfigError: `folded` has norms already, or there are no images.
    """
    convolutions = {name: module for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)}
    if any(module.bias is None for module in convolutions.values()):
        raise ConfigError("unfold(folded=...): expected MCUNet(norm=False), got one with batch norms")
    means, variances = _statistics(folded, convolutions, images)
    classifier = folded.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    network = MCUNet(classifier.out_features, convolutions["first_conv"].in_channels, norm=True).eval()
    network.to(classifier.weight.device, classifier.weight.dtype)
    network.get_submodule("classifier").load_state_dict(classifier.state_dict())
    for name, old in convolutions.items():
        assert old.bias is not None
        new, norm = network.get_submodule(name), network.get_submodule(f"{name}_norm")
        assert isinstance(new, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # He et al., ICCV 2015: a filter's expected norm is sqrt(2).
        scale = 2**0.5 / old.weight.flatten(1).norm(dim=1).clamp_min(1e-6)
        mean, variance = means[name] - old.bias, variances[name]
        deviation = (variance * scale.square() + norm.eps).sqrt()
        new.weight.copy_(old.weight * scale.view(-1, 1, 1, 1))
        norm.running_mean.copy_(mean * scale)
        norm.running_var.copy_(variance * scale.square())
        norm.weight.copy_(deviation / scale)
        norm.bias.copy_(means[name])
    return network


def _statistics(
    folded: MCUNet, convolutions: dict[str, nn.Conv2d], images: Iterable[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return mean and variance a channel of every convolution's output, over all images."""
    sums = {name: torch.zeros(module.out_channels, dtype=torch.float64) for name, module in convolutions.items()}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    counts = dict.fromkeys(convolutions, 0)

    def note(name: str, output: Tensor) -> None:
        sums[name] += output.sum((0, 2, 3), dtype=torch.float64).cpu()
        squares[name] += output.double().square().sum((0, 2, 3)).cpu()
        counts[name] += output[:, 0].numel()

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: note(name, output))
        for name, module in convolutions.items()
    ]
    try:
        for batch in images:
            folded(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(counts.values()):
        raise ConfigError("unfold(images=...): expected at least one batch of images, got none")
    means = {name: total / counts[name] for name, total in sums.items()}
    variances = {name: (squares[name] / counts[name] - means[name].square()).clamp_min(0) for name in means}
    kinds = {name: module.weight for name, module in convolutions.items()}
    return {n: m.to(kinds[n]) for n, m in means.items()}, {n: v.to(kinds[n]) for n, v in variances.items()}
