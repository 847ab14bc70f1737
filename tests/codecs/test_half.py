"""Cores and factors in half precision: half the bytes, once, and an error far below the truncation's."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import tuckprop
from tests.cases import decaying
from tests.codecs.test_subspace import lost_share, similar
from tests.native.compiler import needs_compiler
from tuckprop import Subspace
from tuckprop.codecs import DensePacked
from tuckprop.codecs._half import HalfPacked
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.layers import observe
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.memory import census

SHAPE = (6, 70, 6, 6)  # Too few elements for codes.


def example(seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    return similar(decaying(SHAPE, seed=0), seed, noise).float()


def half(packed: object) -> HalfPacked:
    assert isinstance(packed, HalfPacked)
    return packed


def test_half_the_bytes_of_the_whole() -> None:
    packed = half(Subspace(0.9).compress(example()))
    core, factors = packed.partial(range(4))
    assert {tensor.dtype for tensor in (core, *factors.values())} == {torch.float32}
    whole = TuckerPacked(core, factors, packed.ranks)
    assert 2 * packed.nbytes == whole.nbytes
    assert packed.paper_count() == whole.paper_count()


def test_the_factors_are_the_bases_themselves() -> None:
    tracker = Subspace(0.9).tracker()
    first, second = half(tracker.compress(example(0))), half(tracker.compress(example(1)))
    (bases,) = tracker.bases.values()
    assert bases.factors
    for axis, basis in bases.factors.items():
        assert basis.data_ptr() == first.form.factors[axis].data_ptr() == second.form.factors[axis].data_ptr()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.1, 1.0])), min_size=1, max_size=6),
    st.sampled_from([0.5, 0.8, 0.95, 0.99]),
)
def test_rounding_adds_little_to_what_may_be_lost(steps: list[tuple[int, float]], epsilon: float) -> None:
    tracker = Subspace(epsilon).tracker()
    for seed, noise in steps:
        x = example(seed, noise)
        packed = tracker.compress(x)
        if isinstance(packed, DensePacked):
            continue  # Noise, of which no form is smaller.
        lost = lost_share(x, half(packed))
        (bases,) = tracker.bases.values()
        tracked = 1.25 * max(bases.lost, 0.05 * (1 - epsilon))
        # Bases are orthonormal to 2e-4, and cores lose at most (2 ** -8) ** 2 / 4.
        assert lost <= tracked + (1 - tracked) * (1 - epsilon) / 3 + 3e-4


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (Subspace(0.995), torch.float32),
        (Subspace(0.995), torch.bfloat16),
        (Subspace(0.8), torch.float64),
        (Subspace(0.8), torch.float16),
    ],
    ids=str,
)
def test_where_it_would_be_felt_nothing_is_rounded(codec: Subspace, dtype: torch.dtype) -> None:
    packed = codec.compress(example().to(dtype))
    assert isinstance(packed, TuckerPacked)
    assert {tensor.dtype for tensor in packed.tensors()} == {dtype}


def test_it_is_made_again_from_what_is_saved() -> None:
    packed = half(Subspace(0.9).compress(example()))
    again = HalfPacked.rebuild(packed.tensors(), packed.meta)
    assert torch.equal(again.dense(), packed.dense())
    assert again.shape == packed.shape == torch.Size(SHAPE)
    core, factors = again.partial((1,))
    assert core.dtype == factors[1].dtype == torch.float32


@pytest.mark.parametrize("move", [copy.deepcopy, lambda tracker: pickle.loads(pickle.dumps(tracker))])
def test_bases_survive_a_copy(move: object) -> None:
    tracker = Subspace(0.9).tracker()
    tracker.compress(example(0))
    moved = move(tracker)  # type: ignore[operator]
    assert torch.equal(moved.compress(example(1)).dense(), tracker.compress(example(1)).dense())
    assert moved.refreshes == 1


def test_what_is_carried_from_step_to_step_counts_as_held() -> None:
    """Bases of an earlier step are no less in memory than those of this one."""
    torch.manual_seed(0)
    model = tuckprop.convert(torch.nn.Sequential(torch.nn.Conv2d(70, 70, 1), torch.nn.Conv2d(70, 8, 1)), Subspace(0.9))
    held, forms = [], []
    for seed in range(3):
        with census(model) as counted, observe(lambda event: forms.append(event.kept.nbytes)):
            loss = model(example(seed)).sum()
            held.append(counted.by_module()["1"])
        loss.backward()
    assert held == forms[1::2]
    assert model[1]._site.tracker.refreshes == 1


def test_bfloat16_is_packed_as_the_same_in_single_precision() -> None:
    one, other = Subspace(0.9).tracker(), Subspace(0.9).tracker()
    for seed, noise in ((0, 0.1), (1, 0.1), (2, 0.1), (3, 1.0)):
        x = example(seed, noise).bfloat16()
        for laid in (x, x.contiguous(memory_format=torch.channels_last)):
            found, single = one.compress(laid), other.compress(laid.float())
            assert type(found) is type(single)
            assert found.dense().dtype == torch.bfloat16
            for mine, its in zip(found.tensors(), single.tensors(), strict=True):
                assert_close(mine.float(), its.float(), rtol=0.01, atol=1e-3 * float(its.float().abs().max()))
    assert one.refreshes == other.refreshes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-18])
def test_what_cannot_be_squared_in_single_precision_has_no_form_in_bfloat16(value: float) -> None:
    tracker = Subspace(0.9).tracker()
    x = example().bfloat16()
    known = tracker.compress(x)
    broken = x * value if value < 1 else x.index_fill(1, torch.tensor([2]), value)
    for tensor in (broken, broken.float()):
        with pytest.raises(NotFactorableError):
            tracker.compress(tensor)
        with pytest.raises(NotFactorableError):
            Subspace(0.9).compress(tensor)
    assert torch.equal(tracker.compress(x).dense(), known.dense())


class _Largest(TorchDispatchMode):
    """Notes the largest tensor in float32 that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@needs_compiler
def test_no_copy_of_bfloat16_is_made_while_bases_serve() -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying((8, 24, 16, 16), seed=0).bfloat16()
    tracker.compress(x)
    with _Largest() as largest:
        tracker.compress(x)
    assert tracker.refreshes == 1
    assert largest.elements < x.numel() // 2
