"""ASI: one step of subspace iteration a step, at fixed ranks."""

import pytest
import torch
from torch import Tensor

from tests.cases import decaying
from tuckprop import ASI, HOSVD
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.errors import ConfigError
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.iteration import gram_times, iterate
from tuckprop.linalg.modes import mode_gram

SHAPE = (6, 8, 7, 5)


@pytest.mark.parametrize("mode", range(4))
def test_gram_times_is_the_gram_matrix_times(mode: int) -> None:
    x = decaying(SHAPE, seed=0)
    basis = torch.randn(SHAPE[mode], 3, dtype=torch.float64)
    torch.testing.assert_close(gram_times(x, basis, mode), mode_gram(x, mode) @ basis)


def test_iteration_converges_to_the_leading_subspace() -> None:
    x = decaying(SHAPE, seed=0)
    basis = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q
    for _ in range(40):
        basis = iterate(x, basis, 1)
    leading = torch.linalg.svd(x.movedim(1, 0).flatten(1)).U[:, :3]
    torch.testing.assert_close(basis @ basis.T, leading @ leading.T, rtol=0, atol=1e-6)


def test_repeated_steps_reach_the_error_of_hosvd() -> None:
    x = decaying(SHAPE, seed=0)
    exact = HOSVD(0.8).compress(x)
    assert isinstance(exact, TuckerPacked)
    tracker = ASI(exact.ranks).tracker()

    def error() -> Tensor:
        return (tracker.compress(x).dense() - x).norm()

    first = error()
    for _ in range(30):
        last = error()
    assert last < first
    projected = ASI(exact.ranks).tracker()
    projected.bases = tracker.bases
    # HOSVD may leave a mode whole, which ASI projects: its error is at least as large, and near.
    assert (exact.dense() - x).norm() <= last * (1 + 1e-9)


def test_ranks_are_fixed_and_cut_to_the_sizes() -> None:
    packed = ASI((2, 100, 3)).compress(decaying(SHAPE, seed=0))
    assert isinstance(packed, TuckerPacked)
    assert packed.ranks == (2, 8, 3, 3)
    assert packed.paper_count() == 2 * 8 * 3 * 3 + 6 * 2 + 8 * 8 + 7 * 3 + 5 * 3


def test_a_new_batch_size_starts_bases_of_its_own() -> None:
    tracker = ASI((2, 3, 2, 2)).tracker()
    for batch in (6, 4, 6):
        packed = tracker.compress(decaying((batch, 8, 7, 5), seed=0))
        assert packed.shape[0] == batch


def test_it_draws_from_a_generator_of_its_own() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    ASI().compress(decaying(SHAPE, seed=0))
    assert torch.equal(torch.randn(3), expected)


def test_a_non_finite_activation_does_not_spoil_the_bases() -> None:
    tracker = ASI((2, 3, 2, 2)).tracker()
    x = decaying(SHAPE, seed=0)
    tracker.compress(x)
    before = {axis: basis.clone() for axis, basis in tracker.bases[SHAPE].items()}
    with pytest.raises(NotFactorableError):
        tracker.compress(x * float("nan"))
    assert all(torch.equal(tracker.bases[SHAPE][axis], basis) for axis, basis in before.items())


def test_zero_activations_are_exact() -> None:
    x = torch.zeros(SHAPE)
    assert torch.equal(ASI().compress(x).dense(), x)


@pytest.mark.parametrize("ranks", [(), (0,), (2, -1), (1.5,), 4, "4"])
def test_wrong_ranks_are_refused(ranks: object) -> None:
    with pytest.raises(ConfigError, match="ranks"):
        ASI(ranks)  # type: ignore[arg-type]
