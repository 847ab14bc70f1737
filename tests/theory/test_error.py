"""Bounds of the error against the error that is measured."""

from math import inf, sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.cases import decaying
from tests.theory.made import Layer, layers
from tuckprop.codecs import HOSVD, SVD
from tuckprop.errors import ConfigError
from tuckprop.linalg.tucker import project
from tuckprop.theory import error

epsilons = st.floats(0.3, 0.999)
decays = st.floats(0.3, 1.0)
shapes = st.lists(st.integers(2, 8), min_size=4, max_size=4).map(tuple)


@given(shapes, epsilons, decays)
def test_hosvds_error_is_the_energy_that_the_core_lacks(shape: tuple[int, ...], epsilon: float, decay: float) -> None:
    x = decaying(shape, seed=3, decay=decay)
    packed = HOSVD(epsilon).compress(x)
    measured = float((x - packed.dense()).square().sum())
    energy, core_energy = float(x.square().sum()), float(packed.core.square().sum())
    assert error.squared_error(energy, core_energy) == pytest.approx(measured, abs=1e-9 * energy)
    ratio = error.snr(energy, measured)
    assert ratio >= error.hosvd_snr_bound(epsilon) * (1 - 1e-9)
    assert measured <= error.hosvd_error_bound(epsilon) * energy * (1 + 1e-9) + 1e-20
    # Only modes that have a factor lose anything.
    assume(packed.factors)
    assert ratio >= error.hosvd_snr_bound(epsilon, len(packed.factors)) * (1 - 1e-9)


@given(shapes, epsilons, decays)
def test_svds_ratio_is_over_its_bound(shape: tuple[int, ...], epsilon: float, decay: float) -> None:
    x = decaying(shape, seed=4, decay=decay)
    lost = float((x - SVD(epsilon).compress(x).dense()).square().sum())
    assert error.snr(float(x.square().sum()), lost) >= error.svd_snr_bound(epsilon) * (1 - 1e-9)


@given(layers(grouped=False), epsilons, st.sampled_from([(HOSVD, 4), (SVD, 1)]))
def test_the_weight_gradients_error_is_under_its_bound(
    layer: Layer, epsilon: float, method: tuple[type[HOSVD] | type[SVD], int]
) -> None:
    kind, modes = method
    x, grad = decaying(layer.conv.shape, seed=5, decay=0.8), layer.grad()
    kept = kind(epsilon).compress(x).dense()
    measured = float((layer.weight_gradient(x, grad) - layer.weight_gradient(kept, grad)).norm())
    # T_G treats every channel alike, so its columns are the gradients at unit activations, a channel each.
    batch, _, height, width = layer.conv.shape
    units = torch.eye(batch * height * width, dtype=torch.float64).reshape(batch, height, width, -1).movedim(-1, 1)
    columns = layer.weight_gradient(units.contiguous(), grad).transpose(0, 1).flatten(1)
    norm = float(torch.linalg.matrix_norm(columns, 2))
    bound = error.weight_gradient_error_bound(epsilon, norm, float(x.norm()), modes)
    assert measured <= bound * (1 + 1e-9) + 1e-12


def test_the_bounds_of_the_paper_settings() -> None:
    assert error.hosvd_snr_bound(0.9) == pytest.approx(2.5)
    assert error.svd_snr_bound(0.9) == pytest.approx(10)
    assert error.hosvd_snr_guess(0.9) == pytest.approx(1 / (1 - 0.9**4))
    assert error.weight_gradient_error_bound(0.9, 3.0, 5.0) == pytest.approx(2 * sqrt(0.1) * 15)
    # A projection never loses more than there is.
    assert error.hosvd_snr_bound(0.5) == 1
    assert error.weight_gradient_error_bound(0.1, 3.0, 5.0) == 15


@given(epsilons)
def test_the_guess_is_over_the_bound_and_both_end_without_loss(epsilon: float) -> None:
    assert 1 <= error.hosvd_snr_bound(epsilon) <= error.hosvd_snr_guess(epsilon) <= error.svd_snr_bound(epsilon)
    assert error.hosvd_snr_bound(1) == error.svd_snr_bound(1) == error.hosvd_snr_guess(1) == inf
    assert error.weight_gradient_error_bound(1, 3.0, 5.0) == 0


def test_independent_modes_make_the_guess_exact() -> None:
    """A product of four vectors whose energies fall alike, each truncated, keeps the product of the shares."""
    vector = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64).sqrt()
    x = torch.einsum("a,b,c,d->abcd", vector, vector, vector, vector)
    factors = {mode: torch.eye(3, dtype=torch.float64)[:, :1] for mode in range(4)}
    lost = error.squared_error(float(x.square().sum()), float(project(x, factors).square().sum()))
    assert error.snr(1.0, lost) == pytest.approx(error.hosvd_snr_guess(0.8))


@pytest.mark.parametrize("epsilon", [0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(epsilon: float) -> None:
    for bound in (error.hosvd_snr_bound, error.svd_snr_bound, error.hosvd_snr_guess, error.hosvd_error_bound):
        with pytest.raises(ConfigError, match="epsilon"):
            bound(epsilon)
    with pytest.raises(ConfigError, match="epsilon"):
        error.weight_gradient_error_bound(epsilon, 1.0, 1.0)
    with pytest.raises(ConfigError, match="modes"):
        error.hosvd_error_bound(0.9, 0)
