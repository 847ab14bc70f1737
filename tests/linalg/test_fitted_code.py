"""Codes fitted to values: as good as the best known quantisers, and honest about what they lose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuckprop import native
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.fitted_code import FittedCode, fit
from tuckprop.linalg.levelcode import decode_into
from tuckprop.linalg.standardised import Standardised


def values(kind: str, count: int, seed: int, scale: float = 1.0) -> Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return scale * {"normal": x, "rectified": x.relu(), "shifted": x + 5, "heavy": x**3, "constant": 0 * x + 2}[kind]


def energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def decoded(code: FittedCode, packed: Tensor, levels: Tensor, like: Tensor) -> Tensor:
    y = torch.empty_like(like)
    decode_into(packed, levels, code.bits, y.view(-1))
    return y


# Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory 1960, table I: 2, 4 and 16 levels.
@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (4, 0.009497)])
def test_normal_values_lose_what_the_best_quantiser_does(bits: int, distortion: float) -> None:
    x = values("normal", 1 << 20, 0)
    _, _, lost = fit(x, energy(x), bits).encode(x, energy(x))
    assert lost == pytest.approx(distortion, rel=0.02)


@given(
    kind=st.sampled_from(["normal", "rectified", "shifted", "heavy", "constant"]),
    bits=st.sampled_from([1, 2, 4, 8]),
    count=st.integers(1, 3000),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    compiled=st.booleans(),
)
def test_what_is_said_to_be_lost_is_lost(kind: str, bits: int, count: int, scale: float, compiled: bool) -> None:
    x = values(kind, count, 1, scale)
    total = energy(x)
    if not total:
        return
    code = fit(x, total, bits)
    other = values(kind, count, 2, 3 * scale)
    for tensor in (x, other):
        if not (total := energy(tensor)):
            continue
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(native, "serves", lambda _: False)
            packed, levels, lost = code.encode(tensor, total)
            restored = decoded(code, packed, levels, tensor)
        assert packed.numel() == -(-count * bits // 8)
        assert lost == pytest.approx(energy(tensor - restored) / total, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("bits", "near"), [(2, 0.2), (4, 0.02), (8, 0.02)])
def test_a_rectifiers_zeros_stay_near_zero(bits: int, near: float) -> None:
    x = values("rectified", 100_000, 0)
    code = fit(x, energy(x), bits)
    packed, levels, _ = code.encode(x, energy(x))
    restored = decoded(code, packed, levels, x)
    assert float(restored[x == 0].abs().max()) < near
    # Levels are means of what they stand for, so that sums are kept.
    assert float(restored.mean()) == pytest.approx(float(x.mean()), rel=0.01)


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    layout=st.sampled_from(["contiguous", "reversed"]),
    part=st.sampled_from([8, 64, 1 << 18]),
    seed=st.integers(0, 99),
)
def test_the_parts_of_a_standardised_tensor_are_the_whole(shape: list[int], layout: str, part: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if layout == "reversed":
        x = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    ones = [1] * len(shape)
    ones[1] = shape[1]
    shift, scale = torch.randn(ones, generator=generator), torch.rand(ones, generator=generator)
    source = Standardised(x, shift, scale, Energy(x.sum()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuckprop.linalg.standardised._PART", part)
        parts = [p.clone() for p in source.parts(8)]
    assert all(p.numel() % 8 == 0 for p in parts[:-1])
    expected = source.dense()
    assert torch.equal(torch.cat(parts), expected.as_strided((x.numel(),), (1,)))


def _standardised(shape: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype) -> Standardised:
    generator = torch.Generator().manual_seed(len(shape) + sum(sizes))
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    shift, scale = torch.randn(sizes, generator=generator), torch.rand(sizes, generator=generator) + 0.5
    return Standardised(x, shift, scale, Energy(x.sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((3, 5, 7, 7), (1, 5, 1, 1)),
        ((2, 40, 33), (1, 40, 1)),
        ((9, 4, 13), (9, 4, 1)),
        ((6, 2, 1, 50), (6, 1, 1, 1)),
        ((4, 300), (1, 1)),
        ((40, 600), (40, 1)),
        ((7, 20), (1, 20)),
        ((3, 4, 5, 16), (3, 1, 5, 1)),
    ],
)
def test_a_standardised_tensor_is_coded_as_what_it_stands_for(
    shape: tuple[int, ...], sizes: tuple[int, ...], bits: int, dtype: torch.dtype
) -> None:
    source = _standardised(shape, sizes, dtype)
    dense = source.dense()
    energy = float(dense.double().square().sum())
    code = fit(dense, energy, bits)
    found, expected = code.encode(source, energy), code.encode(dense, energy)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[2] == pytest.approx(expected[2], rel=1e-5)
    levels = torch.empty(dense.numel())
    decode_into(found[0], found[1], bits, levels)
    lost = float((levels - dense.view(-1)).double().square().sum())
    assert found[2] == pytest.approx(lost / energy, rel=1e-4)


def test_rows_of_one_shift_and_scale_are_found_in_memory() -> None:
    rows = _standardised((3, 5, 7, 7), (1, 5, 1, 1), torch.float32).rows()
    assert rows is not None
    assert rows.positions == 49
    assert len(rows.shift) == len(rows.scale) == 5
    # They would be short, or shift and scale come again in no such order.
    assert _standardised((7, 20), (1, 20), torch.float32).rows() is None
    assert _standardised((3, 4, 5, 16), (3, 1, 5, 1), torch.float32).rows() is None
    source = _standardised((3, 5, 7, 7), (1, 5, 1, 1), torch.float32)
    last = Standardised(source.x.to(memory_format=torch.channels_last), source.shift, source.scale, source.energy)
    assert last.rows() is None
