"""Twins for layers of other libraries, loaded only where a model uses them."""

from torch import nn


def load_twins_for(module: nn.Module) -> None:
    """Register the twins of the library that `module` comes from, if there are any."""
