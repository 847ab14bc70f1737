"""Deflated HOSVD: the form is HOSVD8's to the bit, in no more bytes."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.cases import decaying
from tests.codecs.test_hosvd import decays, draw_tensor, epsilons, scales, seeds, shapes
from tuckprop import HOSVD8, DeflatedHOSVD
from tuckprop.codecs.deflated_hosvd import DeflatedPacked


@given(shapes, epsilons, seeds, decays, scales)
def test_it_is_hosvd8_in_no_more_bytes(
    shape: tuple[int, ...], epsilon: float, seed: int, decay: float, scale: float
) -> None:
    x = draw_tensor(shape, seed, decay, scale, torch.float32)
    packed, eight = DeflatedHOSVD(epsilon).compress(x), HOSVD8(epsilon).compress(x)
    assert packed.nbytes <= eight.nbytes
    assert (packed.shape, packed.paper_count()) == (eight.shape, eight.paper_count())
    assert torch.equal(packed.dense(), eight.dense())
    rebuilt = DeflatedPacked.rebuild(packed.tensors(), packed.meta)
    assert torch.equal(rebuilt.dense(), eight.dense())
    core, factors = packed.partial((0, 1))
    expected_core, expected_factors = eight.partial((0, 1))
    assert torch.equal(core, expected_core)
    assert factors.keys() == expected_factors.keys()


def activation() -> Tensor:
    return decaying((32, 48, 12, 12), seed=3, decay=0.9).relu().float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_tenth_of_the_bytes_goes(dtype: torch.dtype) -> None:
    x = activation().to(dtype)
    packed = DeflatedHOSVD(0.95).compress(x)
    assert packed.nbytes < 0.9 * HOSVD8(0.95).compress(x).nbytes
    assert packed.dense().dtype == dtype


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(4, 5, 6, 6)
    assert torch.equal(DeflatedHOSVD(0.9).compress(x).dense(), x)
