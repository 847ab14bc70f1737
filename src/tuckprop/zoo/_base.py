"""What a network of the zoo is: a function of the number of classes and input channels, registered by name."""

from collections.abc import Callable

from torch import nn

from tuckprop.registry import Registry

# (classes, channels) -> network, freshly initialised.
Builder = Callable[[int, int], nn.Module]

networks: Registry[Builder] = Registry("network")
