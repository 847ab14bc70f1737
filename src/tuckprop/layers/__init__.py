"""Twins of PyTorch's layers: one file a layer kind. Importing this package registers them."""

from tuckprop.layers import conv, conv_transpose, gradient_filter, linear, rectifier
from tuckprop.layers._third_party import load_twins_for
from tuckprop.layers._twin import PackEvent, Site, Twin, all_twins, find_twin, observe, twin_of

__all__ = [
    "PackEvent",
    "Site",
    "Twin",
    "all_twins",
    "conv",
    "conv_transpose",
    "find_twin",
    "gradient_filter",
    "linear",
    "rectifier",
    "load_twins_for",
    "observe",
    "twin_of",
]
