"""Make a network by name."""

from torch import nn

from tuckprop.errors import ConfigError
from tuckprop.zoo._base import networks
from tuckprop.zoo.hub import timm_network

# Before the name of a network of timm.
TIMM = "timm:"


def build(name: str, classes: int, channels: int = 3) -> nn.Module:
    """Return a freshly initialised network; the global random state decides the initial weights.

    Args:
        name: A registered name, or `timm:NAME` for any network of timm.
        classes: Outputs of the classifier.
        channels: Channels of the images.

    Returns:
        The network, in train mode.

    Raises:
        ConfigError: The name is unknown, or the network does not take such images.

    Example:
        >>> sum(isinstance(m, nn.Conv2d) for m in build("mcunet", classes=10).modules())
        42
    """
    if name.startswith(TIMM):
        return timm_network(name.removeprefix(TIMM), classes, channels)
    if name not in networks:
        raise ConfigError(f"unknown network {name!r}; known: {', '.join(networks)}, and timm:NAME for any of timm's")
    return networks[name](classes, channels)
