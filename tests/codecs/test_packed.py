"""What every codec and every packed form must do, whatever its method."""

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.cases import CODECS, FACTORED, decaying
from tuckprop.codecs import HOSVD8, Codec, Dense, GradientFilter, Packed
from tuckprop.codecs._half import HalfPacked
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.modes import expand, mode_product

SHAPES = [(6,), (5, 7), (4, 5, 6), (3, 4, 7, 6), (2, 3, 4, 3, 4), (1, 4, 5, 5), (4, 1, 1, 1), (1, 1)]
EVERY = [*CODECS, *FACTORED]
# The codecs that decompose, and so must know a tensor that has no decomposition.
DECOMPOSING = [codec for codec in CODECS if not isinstance(codec, (Dense, GradientFilter))]


def shapes_for(codec: Codec) -> list[tuple[int, ...]]:
    return [shape for shape in SHAPES if len(shape) == 4] if isinstance(codec, GradientFilter) else SHAPES


PACKINGS = [(codec, shape) for codec in EVERY for shape in shapes_for(codec)]
each_packing = pytest.mark.parametrize(("codec", "shape"), PACKINGS, ids=repr)
# Those that do not round what they keep: see test_hosvd8.py for the one that does.
each_codec = pytest.mark.parametrize("codec", [codec for codec in EVERY if not isinstance(codec, HOSVD8)], ids=repr)


def pack(codec: Codec, shape: tuple[int, ...]) -> tuple[Tensor, Packed]:
    x = decaying(shape, seed=5)
    return x, codec.compress(x)


@each_packing
def test_shape_and_dtype_are_the_activations(codec: Codec, shape: tuple[int, ...]) -> None:
    x, packed = pack(codec, shape)
    assert packed.shape == x.shape
    assert packed.dense().shape == x.shape
    assert packed.dense().dtype == x.dtype


@each_packing
def test_rebuilt_from_its_tensors_it_is_the_same(codec: Codec, shape: tuple[int, ...]) -> None:
    _, packed = pack(codec, shape)
    hash(packed.meta)
    again = type(packed).rebuild(packed.tensors(), packed.meta)
    assert_close(again.dense(), packed.dense(), rtol=1e-13, atol=1e-13)
    assert (again.shape, again.meta, again.paper_count()) == (packed.shape, packed.meta, packed.paper_count())


@each_packing
def test_partial_equals_the_default_for_every_choice_of_axes(codec: Codec, shape: tuple[int, ...]) -> None:
    _, packed = pack(codec, shape)
    axes = range(len(shape))
    for keep in chain.from_iterable(combinations(axes, count) for count in range(len(shape) + 1)):
        core, factors = packed.partial(keep)
        assert set(factors) <= set(keep)
        for axis in axes:
            assert core.shape[axis] == (factors[axis].shape[1] if axis in factors else shape[axis])
        for axis, factor in factors.items():
            assert factor.shape[0] == shape[axis]
            core = expand(core, factor, axis)
        assert_close(core, Packed.partial(packed, keep)[0], rtol=1e-12, atol=1e-12)


@each_packing
def test_the_outline_has_the_shapes_of_partial(codec: Codec, shape: tuple[int, ...]) -> None:
    _, packed = pack(codec, shape)
    core, factors = packed.partial(range(len(shape)))
    outline = packed.outline()
    assert outline.core == core.shape
    assert set(outline.factors) == {(axis, *factor.shape) for axis, factor in factors.items()}


@each_packing
def test_its_tensors_hold_no_larger_storage_alive(codec: Codec, shape: tuple[int, ...]) -> None:
    """The published code kept views of full factors, and so saved nothing."""
    x, packed = pack(codec, shape)
    for tensor in packed.tensors():
        if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert packed.nbytes == sum(t.untyped_storage().nbytes() for t in packed.tensors())


@each_packing
def test_the_activation_is_not_changed(codec: Codec, shape: tuple[int, ...]) -> None:
    x, _ = pack(codec, shape)
    assert x._version == 0
    assert torch.equal(x, decaying(shape, seed=5))


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@each_codec
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(codec: Codec, layout: str) -> None:
    x = decaying((3, 4, 6, 5), seed=5)
    laid = LAYOUTS[layout](x)
    assert laid.stride() != x.stride()
    packed, straight = codec.compress(laid), codec.compress(laid.contiguous())
    assert packed.paper_count() == straight.paper_count()
    factors, others = packed.partial(range(4))[1], straight.partial(range(4))[1]
    # Where two choices of modes take the same bytes, the order of the strides may decide.
    for axis in factors.keys() & others.keys():
        # A rank beyond that of the activation itself leaves columns open that nothing of it lies along.
        here, there = (mode_product(laid, f[axis] @ f[axis].T, axis) for f in (factors, others))
        assert_close(here, there, rtol=1e-9, atol=1e-9)
    if factors:
        expected = laid
        for axis, factor in factors.items():
            expected = mode_product(expected, factor @ factor.T, axis)
    else:
        expected = straight.dense()
    assert_close(packed.dense(), expected, rtol=1e-9, atol=1e-9)


@each_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_are_kept_as_well_as_they_can_be(codec: Codec, dtype: torch.dtype) -> None:
    x = decaying((4, 5, 6, 6), seed=5).to(dtype)
    packed, exact = codec.compress(x), codec.compress(x.double())
    error = (packed.dense().double() - exact.dense()).norm() / exact.dense().norm()
    assert packed.dense().dtype == dtype
    if isinstance(packed, HalfPacked):
        # Every element of the core is off by half a unit in its last place at most, the factors by far less.
        assert dtype in {torch.float32, torch.bfloat16}
        assert {t.dtype for t in packed.tensors()} == {torch.bfloat16, torch.float16}
        # Those of a bfloat16 tensor are multiplied out in its own precision.
        assert error < (0.6 if dtype == torch.float32 else 16) * torch.finfo(torch.bfloat16).eps
    else:
        assert {t.dtype for t in packed.tensors()} == {dtype}
        assert error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("codec", DECOMPOSING, ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [(0, 0, 0, 0), (2, 3, 5, 4)])
def test_a_tensor_that_is_not_finite_has_no_form(codec: Codec, value: float, position: tuple[int, ...]) -> None:
    x = decaying((3, 4, 6, 6), seed=5)
    x[position] = value
    with pytest.raises(NotFactorableError):
        codec.compress(x)


@pytest.mark.parametrize("codec", DECOMPOSING, ids=repr)
def test_a_core_out_of_the_range_of_float16_has_no_form(codec: Codec) -> None:
    """The core's first entry reaches the norm of the activation, 200000 here, where each element is 1000."""
    x = torch.full((10, 10, 20, 20), 1000.0, dtype=torch.float16)
    try:
        packed = codec.compress(x)
    except NotFactorableError:
        return
    assert_close(packed.dense(), x, rtol=1e-2, atol=0)


@pytest.mark.parametrize("codec", DECOMPOSING, ids=repr)
@pytest.mark.parametrize("exponent", [*range(-36, 37, 3), 37])
def test_at_any_scale_the_form_is_right_or_refused(codec: Codec, exponent: int) -> None:
    x = (decaying((3, 4, 5, 6), seed=5) * 10.0**exponent).float()
    expected = codec.compress(x.double() / 10.0**exponent).dense()
    try:
        packed = codec.compress(x)
    except NotFactorableError:
        assert not -12 < exponent < 15  # Scales that training meets are not refused.
        return
    error = (packed.dense().double() / 10.0**exponent - expected).norm() / expected.norm()
    assert error < (0.6 * torch.finfo(torch.bfloat16).eps if isinstance(packed, HalfPacked) else 1e-3)


@each_codec
def test_a_config_is_a_value(codec: Codec) -> None:
    again = type(codec)(**vars(codec))
    assert again == codec
    assert hash(again) == hash(codec)
    with pytest.raises(AttributeError):
        codec.epsilon = 0.3
