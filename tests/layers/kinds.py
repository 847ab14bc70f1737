"""One layer and codec of each code path of a compressing twin."""

import pytest
from torch import nn

from tests.cases import LayerCase
from tuckprop import HOSVD, SVD, GradientFilter
from tuckprop.codecs import Codec

# One of each code path: convolution, transposed, Linear, Gradient Filter.
KINDS: list[tuple[LayerCase, Codec]] = [
    (LayerCase(nn.Conv2d, (8, 6, 12, 12), (6, 5, 3), {"padding": 1}), HOSVD(0.9)),
    (LayerCase(nn.ConvTranspose2d, (8, 6, 12, 12), (6, 5, 3), {"stride": 2}), HOSVD(0.9)),
    (LayerCase(nn.Linear, (8, 20, 12), (12, 5)), HOSVD(0.9)),
    (LayerCase(nn.Linear, (40, 12), (12, 5)), SVD(0.9)),
    (LayerCase(nn.Conv2d, (8, 6, 12, 12), (6, 5, 3), {"padding": 1}), GradientFilter(2)),
]
EXACT_INPUT = KINDS[:-1]
each_kind = pytest.mark.parametrize(("case", "codec"), KINDS, ids=str)
each_exact = pytest.mark.parametrize(("case", "codec"), EXACT_INPUT, ids=str)
