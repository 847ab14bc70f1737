"""Ways to keep an activation: one file a method, each a frozen config and the form it packs into."""

from tuckprop.codecs._base import Codec, Packed, Tracker, codecs
from tuckprop.codecs.asi import ASI
from tuckprop.codecs.deflated_hosvd import DeflatedHOSVD
from tuckprop.codecs.dense import Dense, DensePacked
from tuckprop.codecs.gradient_filter import GradientFilter
from tuckprop.codecs.hosvd import HOSVD
from tuckprop.codecs.hosvd8 import HOSVD8
from tuckprop.codecs.subspace import Subspace
from tuckprop.codecs.svd import SVD

__all__ = [
    "ASI",
    "HOSVD",
    "HOSVD8",
    "SVD",
    "Codec",
    "DeflatedHOSVD",
    "Dense",
    "DensePacked",
    "GradientFilter",
    "Packed",
    "Subspace",
    "Tracker",
    "codecs",
]
