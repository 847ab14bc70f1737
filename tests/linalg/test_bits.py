"""Packing and unpacking give back what went in, in the bytes promised, at every size around a byte and a slab."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuckprop.errors import ConfigError
from tuckprop.linalg import bits
from tuckprop.linalg.bits import (
    CODE_BITS,
    collect_flags,
    gates,
    pack_codes,
    pack_flags,
    packed_bytes,
    unpack_codes,
    unpack_flags,
)

CPU = torch.device("cpu")
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 130]


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_CPU_SLAB", 64)


def random_flags(count: int) -> torch.Tensor:
    return torch.rand(count) < 0.4


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("dtype", [torch.bool, *FLOATS], ids=str)
def test_flags_come_back(count: int, dtype: torch.dtype) -> None:
    flags = random_flags(count)
    packed = pack_flags(flags.to(dtype))
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-count // 8),)
    assert torch.equal(unpack_flags(packed, count), flags)


@pytest.mark.parametrize("count", SIZES)
@each_float
def test_collected_flags_are_packed_flags(count: int, dtype: torch.dtype) -> None:
    flags = random_flags(count)
    collected = collect_flags(lambda part, out: out.copy_(flags[part]), count, dtype, CPU)
    assert torch.equal(collected, pack_flags(flags))


@pytest.mark.parametrize("count", SIZES[1:])
@each_float
def test_a_gate_is_positive_where_the_flag_is_set_and_zero_elsewhere(count: int, dtype: torch.dtype) -> None:
    flags = torch.ones(count, dtype=torch.bool) if count == 8 else random_flags(count)
    seen = torch.cat([gate.clone() for _, gate in gates(pack_flags(flags), count, dtype)])
    assert seen.dtype == dtype
    assert torch.equal(seen > 0, flags)
    assert torch.equal(seen == 0, ~flags)
    assert seen.isfinite().all()


@each_float
def test_gates_are_numbers_that_flushing_denormals_does_not_change(dtype: torch.dtype) -> None:
    """A processor told to treat tiny numbers as zero must not lose a flag."""
    flags = torch.ones(8, dtype=torch.bool)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        grad, ((_, gate),) = torch.ones(8, dtype=dtype), gates(pack_flags(flags), 8, dtype)
        assert torch.equal(torch.ops.aten.threshold_backward(grad, gate, 0), grad)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("width", CODE_BITS)
@pytest.mark.parametrize("count", SIZES)
def test_codes_come_back(count: int, width: int) -> None:
    codes = torch.randint(0, 1 << width, (count,), dtype=torch.uint8)
    packed = pack_codes(codes, width)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(count, width),) == (-(-count * width // 8),)
    assert torch.equal(unpack_codes(packed, width, count), codes)


@given(st.lists(st.integers(0, 255), max_size=300), st.sampled_from(CODE_BITS))
def test_codes_lie_in_their_bytes_from_the_lowest_bits_up(values: list[int], width: int) -> None:
    codes = [value % (1 << width) for value in values]
    expected = [0] * packed_bytes(len(codes), width)
    for place, code in enumerate(codes):
        expected[place * width // 8] |= code << (place * width % 8)
    assert pack_codes(torch.tensor(codes, dtype=torch.uint8), width).tolist() == expected


@given(st.lists(st.booleans(), max_size=300))
def test_any_flags_come_back(values: list[bool]) -> None:
    flags = torch.tensor(values, dtype=torch.bool)
    assert torch.equal(unpack_flags(pack_flags(flags), len(values)), flags)


def test_a_slab_of_flags_lies_in_eight_planes() -> None:
    """The layout is a promise: what one version packs, another may unpack."""
    flags = torch.zeros(64, dtype=torch.bool)
    flags[8 * 3 + 5] = True  # Plane 3, byte 5.
    assert pack_flags(flags).tolist() == [0, 0, 0, 0, 0, 1 << 3, 0, 0]


@pytest.mark.parametrize("width", [0, 3, 16, "4"])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="1, 2, 4 or 8 bits"):
        pack_codes(torch.zeros(4, dtype=torch.uint8), width)


def test_the_largest_work_buffer_is_a_slab() -> None:
    sizes: list[int] = []

    def write(part: slice, out: torch.Tensor) -> None:
        sizes.append(out.untyped_storage().nbytes())
        out.zero_()

    collect_flags(write, 1000, torch.float32, CPU)
    assert max(sizes) <= 64 * 4
