"""Two codes of one tensor: each serves its part, and what is lost is the sum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuckprop.linalg.fitted_code import fit
from tuckprop.linalg.levelcode import decode_into
from tuckprop.linalg.mixed_code import MixedCode, Stretch


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def decoded(stretches: tuple[Stretch, ...]) -> Tensor:
    parts = []
    for stretch in stretches:
        parts.append(torch.empty(stretch.elements))
        decode_into(stretch.codes, stretch.levels, stretch.bits, parts[-1])
    return torch.cat(parts)


@given(st.integers(1, 5000), st.floats(0.01, 1.0), st.sampled_from([(1, 2), (2, 4), (4, 8)]), st.integers(0, 99))
def test_what_is_lost_is_what_is_said(count: int, share: float, bits: tuple[int, int], seed: int) -> None:
    sample, x = noise(5000), noise(count, seed)
    energy = float(sample.square().sum())
    code = MixedCode(fit(sample, energy, bits[0]), fit(sample, energy, bits[1]), share)
    energy = float(x.double().square().sum())
    stretches, lost = code.encode(x, energy)
    assert sum(stretch.elements for stretch in stretches) == count
    assert all(stretch.elements for stretch in stretches)
    assert float((x - decoded(stretches)).double().square().sum()) / energy == pytest.approx(lost, rel=1e-4, abs=1e-9)
    if len(stretches) == 2:
        assert [stretch.bits for stretch in stretches] == [bits[1], bits[0]]
        assert stretches[0].elements - share * count < 64


@pytest.mark.parametrize("most", [0.11, 0.05, 0.03])
def test_a_mix_loses_nearly_what_it_may(most: float) -> None:
    x = noise(1 << 16)
    energy = float(x.square().sum())
    fewer, more = fit(x, energy, 2), fit(x, energy, 4)
    losses = (fewer.encode(x, energy)[2], more.encode(x, energy)[2])
    assert 0.8 * most < MixedCode.between(fewer, more, losses, most).encode(x, energy)[1] <= most


def test_one_code_where_a_mix_saves_nothing() -> None:
    x = noise(1 << 12)
    fewer, more = fit(x, float(x.square().sum()), 2), fit(x, float(x.square().sum()), 4)
    assert MixedCode.between(fewer, more, (0.2, 0.1), 0.1).first is None
    assert MixedCode.between(fewer, more, (0.2, 0.1), 0.1).rest is more
