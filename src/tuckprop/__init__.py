"""tuckprop: PyTorch training in little memory, by keeping activations in factored form."""

from tuckprop import errors
from tuckprop.capture import capture, release
from tuckprop.codecs import ASI, HOSVD, HOSVD8, SVD, DeflatedHOSVD, Dense, GradientFilter, Subspace
from tuckprop.convert import convert, freeze, revert
from tuckprop.forecast import plan
from tuckprop.layers.functional import functional_savers
from tuckprop.memory import MemoryReport, measure
from tuckprop.plan import Plan
from tuckprop.recompute import recompute
from tuckprop.warm import WarmState

__version__ = "0.1.0"

__all__ = [
    "ASI",
    "HOSVD",
    "HOSVD8",
    "SVD",
    "DeflatedHOSVD",
    "Dense",
    "GradientFilter",
    "MemoryReport",
    "Plan",
    "Subspace",
    "WarmState",
    "capture",
    "convert",
    "errors",
    "freeze",
    "functional_savers",
    "measure",
    "plan",
    "recompute",
    "release",
    "revert",
]
