"""Bases from Gram matrices against a full SVD of the unfolding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.cases import decaying
from tuckprop.linalg.basis import NotFactorableError, check_energy, eigh_batched, spectrum, working_dtype


@st.composite
def unfoldings(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    rank = draw(st.integers(1, 9))
    x = decaying(shape, seed=draw(st.integers(0, 999)), decay=draw(st.sampled_from([1.0, 0.5])))
    mode = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()):  # Of lower rank than its sizes allow.
        x = (x.movedim(mode, -1)[..., :1] * decaying((shape[mode],), seed=rank)).movedim(-1, mode).contiguous()
    return x, mode


@given(unfoldings(), st.floats(0.05, 1))
def test_energies_and_vectors_are_those_of_the_svd(drawn: tuple[torch.Tensor, int], epsilon: float) -> None:
    x, mode = drawn
    size, rest = x.shape[mode], math.prod(x.shape) // x.shape[mode]
    unfolded = x.movedim(mode, 0).reshape(size, rest)
    values = torch.linalg.svdvals(unfolded).square()
    found = spectrum(x, mode, epsilon)
    assert found.energies.shape == (min(size, rest),)
    assert_close(found.energies, values, rtol=1e-9, atol=1e-11 * float(values.sum()))
    for rank in range(1, min(size, rest) + 1):
        vectors = found.leading(rank)
        assert vectors.shape == (size, rank)
        assert_close(vectors.T @ vectors, torch.eye(rank, dtype=x.dtype), rtol=0, atol=1e-12)
        kept = (vectors.T @ unfolded).square().sum()
        assert_close(kept, values[:rank].sum(), rtol=1e-9, atol=1e-11 * float(values.sum()))


@given(unfoldings(), st.floats(0.05, 0.999))
def test_the_rank_reaches_the_threshold_and_one_less_does_not(drawn: tuple[torch.Tensor, int], epsilon: float) -> None:
    x, mode = drawn
    energies = torch.linalg.svdvals(x.movedim(mode, 0).flatten(1) if x.dim() > 1 else x[:, None]).square()
    share = energies.cumsum(0) / energies.sum()
    rank = int(spectrum(x, mode, epsilon).rank)
    assert share[rank - 1] >= epsilon - 1e-12
    assert rank == 1 or share[rank - 2] < epsilon + 1e-12


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 0.999), st.integers(0, 9))
def test_in_single_precision_too(size: int, rest: int, epsilon: float, seed: int) -> None:
    """Of a tall unfolding a kernel finds energies first, and vectors where they are asked for."""
    x = decaying((size, rest), seed=seed)
    found = spectrum(x.float(), 0, epsilon)
    values = torch.linalg.svdvals(x).square()
    share, rank = values.cumsum(0) / values.sum(), int(found.rank)
    assert share[rank - 1] >= epsilon - 1e-5
    assert rank == 1 or share[rank - 2] < epsilon + 1e-5
    vectors = found.leading(rank).double()
    assert_close(vectors.T @ vectors, torch.eye(rank, dtype=x.dtype), rtol=0, atol=1e-4)
    assert_close((vectors.T @ x).square().sum(), values[:rank].sum(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (9, 4), (4, 9), (5, 4, 6)], ids=str)
def test_leading_vectors_have_memory_of_their_own(shape: tuple[int, ...]) -> None:
    """A view of all the vectors would keep all of them alive."""
    for mode in range(len(shape)):
        found = spectrum(decaying(shape, seed=1), mode, 0.5)
        for rank in range(1, found.energies.numel() + 1):
            vectors = found.leading(rank)
            assert vectors.is_contiguous()
            assert vectors.untyped_storage().nbytes() == vectors.numel() * 8


def test_epsilon_one_keeps_all_there_can_be_even_of_a_tensor_of_low_rank() -> None:
    x = torch.ones(4, 6, dtype=torch.float64)
    assert [int(spectrum(x, mode, 1.0).rank) for mode in (0, 1)] == [4, 4]
    assert [int(spectrum(x, mode, 0.999999).rank) for mode in (0, 1)] == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 1e-30])
def test_what_cannot_be_squared_in_float32_is_refused(value: float) -> None:
    x = torch.ones(4, 5, 6)
    x = x * value if math.isfinite(value) and value < 1 else x.index_fill(0, torch.tensor([2]), value)
    for mode in range(3):
        with pytest.raises(NotFactorableError):
            spectrum(x, mode, 0.8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zero_is_not_refused(dtype: torch.dtype) -> None:
    check_energy(0.0, torch.zeros(3, dtype=dtype))
    assert int(spectrum(torch.zeros(3, 4, dtype=dtype), 0, 0.8).rank) == 1


@pytest.mark.parametrize(
    ("dtype", "epsilon", "expected"),
    [
        (torch.float16, 0.8, torch.float32),
        (torch.bfloat16, 0.8, torch.float32),
        (torch.float32, 0.8, torch.float32),
        (torch.float32, 0.999, torch.float32),
        (torch.float32, 0.99999, torch.float64),
        (torch.float32, 1.0, torch.float64),
        (torch.float64, 0.8, torch.float64),
    ],
    ids=str,
)
def test_working_dtype(dtype: torch.dtype, epsilon: float, expected: torch.dtype) -> None:
    assert working_dtype(dtype, epsilon) == expected


def test_a_decomposition_that_fails_in_single_precision_is_done_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    x = decaying((4, 6, 5), seed=0, dtype=torch.float32)
    expected = spectrum(x, 1, 0.9)
    original = torch.linalg.eigh

    def fails(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if gram.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return original(gram)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found = spectrum(x, 1, 0.9)
    assert found.rank == expected.rank
    assert found.vectors().dtype == torch.float32
    torch.testing.assert_close(found.energies, expected.energies)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 5))
def test_a_batch_of_eigenproblems_is_each_of_them(sizes: list[int], scale: float, seed: int) -> None:
    """Padding changes nothing, also where the rank is not full and energies of 0 lie next to the padding's."""
    generator = torch.Generator().manual_seed(seed)
    grams = []
    for size in sizes:
        rows = torch.randn(size, max(1, size - 2), generator=generator, dtype=torch.float64)
        grams.append(scale * rows @ rows.T)
    for gram, (energies, vectors) in zip(grams, eigh_batched(grams), strict=True):
        assert energies.shape == (len(gram),)
        identity = torch.eye(len(gram), dtype=gram.dtype)
        torch.testing.assert_close(vectors.T @ vectors, identity, rtol=0, atol=1e-9)
        rebuilt = vectors * energies @ vectors.T
        torch.testing.assert_close(rebuilt, gram, rtol=0, atol=1e-11 * float(gram.trace()))
        assert bool((energies.diff() >= -1e-12 * scale).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_energy_that_single_precision_has_no_number_for_is_refused(dtype: torch.dtype) -> None:
    """A kernel sums in double precision, but what follows squares in single."""
    x = torch.ones(2, dtype=dtype)
    check_energy(3e38, x)
    with pytest.raises(NotFactorableError):
        check_energy(4e38, x)
    check_energy(4e38, x.double())
