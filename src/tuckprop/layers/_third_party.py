"""Twins for layers of other libraries, loaded only where a model uses them."""

from functools import cache
from importlib import import_module

from torch import nn

# Top-level package of a module's class to the files here that register twins for it.
_FILES = {"timm": ("timm_layers", "timm_activations"), "torchvision": ("torchvision_layers",)}


@cache
def _load(package: str) -> None:
    for file in _FILES.get(package, ()):
        import_module(f"tuckprop.layers.{file}")


def load_twins_for(module: nn.Module) -> None:
    """Register the twins of the library that `module` comes from, if there are any."""
    _load(type(module).__module__.partition(".")[0])
