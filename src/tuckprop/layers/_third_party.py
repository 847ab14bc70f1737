"""Twins for layers of other libraries, loaded only where a model uses them."""

from functools import cache
from importlib import import_module

from torch import nn

# Top-level package of a module's class to the file here that registers twins for it.
_FILES = {"timm": "timm_layers"}


@cache
def _load(package: str) -> None:
    if package in _FILES:
        import_module(f"tuckprop.layers.{_FILES[package]}")


def load_twins_for(module: nn.Module) -> None:
    """Register the twins of the library that `module` comes from, if there are any."""
    _load(type(module).__module__.partition(".")[0])
