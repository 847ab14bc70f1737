"""Twins of PyTorch's layers: one file a layer kind. Importing this package registers them."""

from tuckprop.layers import (
    adaptive_max_pool,
    average_pool,
    conv,
    conv_transpose,
    deflated_rectifier,
    dropout,
    gradient_filter,
    linear,
    norm_batch,
    norm_group,
    norm_instance,
    norm_layer,
    norm_rms,
    pool,
    rectifier,
    smooth,
)
from tuckprop.layers._third_party import load_twins_for
from tuckprop.layers._twin import PackEvent, Site, Twin, all_twins, find_twin, observe, twin_of

__all__ = [
    "PackEvent",
    "Site",
    "Twin",
    "adaptive_max_pool",
    "all_twins",
    "average_pool",
    "conv",
    "conv_transpose",
    "deflated_rectifier",
    "dropout",
    "find_twin",
    "gradient_filter",
    "linear",
    "load_twins_for",
    "norm_batch",
    "norm_group",
    "norm_instance",
    "norm_layer",
    "norm_rms",
    "observe",
    "pool",
    "rectifier",
    "smooth",
    "twin_of",
]
