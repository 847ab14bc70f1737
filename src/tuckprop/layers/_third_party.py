"""Twins for layers of other libraries, loaded only where a model uses them."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import nn

# Top-level package of a module's class to the files here that register twins for it. Where a library has too many
# classes to import them all, a file's `meet(plain)` registers a twin for a class that a model has.
_FILES = {
    "timm": ("timm_layers", "timm_activations", "timm_pools", "timm_scales"),
    "torchvision": ("torchvision_layers",),
    "transformers": ("transformers_layers",),
}


@cache
def _load(package: str) -> tuple[Callable[[type[nn.Module]], None], ...]:
    files = [import_module(f"tuckprop.layers.{file}") for file in _FILES.get(package, ())]
    return tuple(file.meet for file in files if hasattr(file, "meet"))


def load_twins_for(module: nn.Module) -> None:
    """Register the twins of the library that `module` comes from, if there are any."""
    plain = type(module)
    for meet in _load(plain.__module__.partition(".")[0]):
        meet(plain)
