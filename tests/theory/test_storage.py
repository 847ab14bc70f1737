"""Counts of elements against those that the library's packed forms hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import decaying
from tests.theory.made import Layer, layers, layers_and_ranks
from tuckprop.codecs import HOSVD, SVD, Dense, GradientFilter
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.theory import Convolution, storage

epsilons = st.floats(0.3, 0.99)


@given(layers(largest=9), epsilons)
def test_hosvd_keeps_what_is_predicted_from_its_ranks(layer: Layer, epsilon: float) -> None:
    packed = HOSVD(epsilon).compress(decaying(layer.conv.shape, seed=1))
    assert isinstance(packed, TuckerPacked)
    assert packed.paper_count() == storage.hosvd_elements(layer.conv, packed.ranks)
    assert packed.nbytes == 8 * storage.hosvd_kept_elements(layer.conv, packed.ranks)


@given(layers(largest=9), epsilons)
def test_svd_keeps_what_is_predicted_from_its_rank(layer: Layer, epsilon: float) -> None:
    packed = SVD(epsilon).compress(decaying(layer.conv.shape, seed=2))
    assert isinstance(packed, TuckerPacked)
    kept = storage.svd_elements(layer.conv, packed.ranks[0])
    assert (packed.paper_count(), packed.nbytes) == (kept, 8 * kept)


@given(layers(), st.integers(1, 7))
def test_gradient_filter_keeps_what_is_predicted(layer: Layer, patch: int) -> None:
    c = layer.conv
    sums = GradientFilter(patch).patch_sums(layer.input(), (c.out_height, c.out_width), (layer.stride,) * 2)
    assert storage.gradient_filter_elements(c, patch) * 8 == sums.nbytes
    assert storage.gradient_filter_elements(c, patch) == sums.paper_count()


@given(layers())
def test_plain_training_keeps_the_activation(layer: Layer) -> None:
    packed = Dense().compress(torch.empty(layer.conv.shape))
    assert storage.plain_elements(layer.conv) * 4 == packed.nbytes
    assert storage.compression_rate(layer.conv, packed.paper_count()) == 1


@given(layers_and_ranks(largest=9))
def test_the_library_never_keeps_more_than_the_formula_or_the_activation(drawn: tuple[Layer, tuple[int, ...]]) -> None:
    layer, ranks = drawn
    kept = storage.hosvd_kept_elements(layer.conv, ranks)
    assert kept <= min(storage.hosvd_elements(layer.conv, ranks), storage.plain_elements(layer.conv))
    if ranks == layer.conv.shape:
        assert kept == storage.plain_elements(layer.conv)


@pytest.mark.parametrize(("size", "rank"), [(8, 1), (16, 4), (64, 64)])
def test_a_cubes_compression_rate_is_its_closed_form(size: int, rank: int) -> None:
    conv = Convolution.cube(size, 3)
    rate = storage.compression_rate(conv, storage.hosvd_elements(conv, (rank,) * 4))
    assert rate == pytest.approx(size**4 / (rank**4 + 4 * size * rank))


def test_the_papers_memory_of_mcunet_per_image() -> None:
    """Gradient Filter's Table 2: 220.5 KiB for the last two convolutions of MCUNet, 72 KiB with patches of 2."""
    depthwise = Convolution.of_layer(1, 576, 7, 7, 576, 3, padding=1, groups=576)
    project = Convolution.of_layer(1, 576, 7, 7, 160, 1)
    assert sum(4 * storage.plain_elements(c) for c in (depthwise, project)) == 220.5 * 1024
    assert sum(4 * storage.gradient_filter_elements(c, 2) for c in (depthwise, project)) == 72 * 1024
