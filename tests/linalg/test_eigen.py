"""Eigendecompositions that a library gets wrong in silence are done again, or refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.layers.norm_contract import twin_of
from tuckprop import HOSVD, HOSVD8, SVD, Subspace, native
from tuckprop.codecs import Codec
from tuckprop.linalg.eigen import eigh, eigh_batched

_library = torch.linalg.eigh


def _silent(matrix: Tensor) -> Any:
    """Return NaN in single precision, as a library does for some finite matrices."""
    pairs = _library(matrix)
    return pairs if matrix.dtype == torch.float64 else tuple(torch.full_like(part, float("nan")) for part in pairs)


def _gram(size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(size, 3 * size, generator=torch.Generator().manual_seed(seed)).clamp_min(0)
    rows[::3] = 0
    return rows @ rows.T


def test_what_is_not_finite_is_done_again_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = _gram(12)
    expected = _library(gram.double())[0].float()
    monkeypatch.setattr(torch.linalg, "eigh", _silent)
    energies, vectors = eigh(gram)
    assert energies.dtype == vectors.dtype == torch.float32
    assert_close(energies, expected, rtol=1e-4, atol=1e-4)
    assert_close(vectors * energies @ vectors.T, gram, rtol=1e-4, atol=1e-4)


def test_in_a_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    grams = [_gram(12), _gram(7)]
    monkeypatch.setattr(torch.linalg, "eigh", _silent)
    for gram, (energies, vectors) in zip(grams, eigh_batched(grams), strict=True):
        assert_close(vectors * energies @ vectors.T, gram, rtol=1e-4, atol=1e-4)


def test_a_matrix_without_a_decomposition_is_refused() -> None:
    gram = _gram(5)
    gram[0, 0] = float("nan")
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        eigh(gram)


@pytest.mark.parametrize("codec", [Subspace(0.8), HOSVD(0.8), HOSVD8(0.8), SVD(0.8)], ids=repr)
@pytest.mark.parametrize("compiled", [True, False])
def test_dead_channels_leave_gradients_finite(codec: Codec, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "available", lambda device: False)
    monkeypatch.setattr(torch.linalg, "eigh", _silent)
    generator = torch.Generator().manual_seed(119)
    x = (torch.randn(8, 48, 8, 8, generator=generator) + torch.randn(48, generator=generator)[:, None, None]).relu()
    x[:, torch.rand(48, generator=generator) < 0.5] = 0
    layer: Any = twin_of(nn.Conv2d(48, 4, 1), codec)
    layer(x.requires_grad_()).square().sum().backward()
    plain = nn.Conv2d(48, 4, 1)
    plain.load_state_dict(layer.state_dict())
    plain(x).square().sum().backward()
    assert plain.weight.grad is not None
    assert layer._site.fallbacks == 0
    assert torch.linalg.vector_norm(layer.weight.grad - plain.weight.grad) < torch.linalg.vector_norm(plain.weight.grad)
