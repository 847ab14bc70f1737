"""Counts of multiply-adds against those that torch counts on the real operations."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from torch import Tensor
from torch.testing import assert_close

from tests.theory.made import Layer, layers, layers_and_ranks, multiply_adds
from tuckprop.codecs import SVD
from tuckprop.errors import ConfigError
from tuckprop.layers._contraction import BATCH, Operands, reduced_route
from tuckprop.layers._geometry import Geometry
from tuckprop.linalg import modes
from tuckprop.linalg.modes import expand, mode_product
from tuckprop.linalg.tucker import hosvd, project
from tuckprop.theory import Convolution, cost, speed


def contraction(layer: Layer, core: Tensor, factors: list[Tensor], grad: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Compute the weight gradient as the paper does, and what each step costs."""
    c, made = layer.conv, {}
    u1, u2, u3, u4 = factors

    def from_channel_ranks() -> Tensor:
        blocks = made["Z4"].reshape(c.groups, -1, *made["Z4"].shape[1:]).transpose(1, 2)  # [g, k2, c' / g, D, D]
        rows = u2.reshape(c.groups, -1, u2.shape[1])  # [g, c / g, k2]
        product = torch.bmm(rows, blocks.flatten(2)).unflatten(2, blocks.shape[2:])
        return product.transpose(1, 2).flatten(0, 1)

    steps = {
        "Z1": lambda: mode_product(grad, u1, 0),
        "Z2": lambda: expand(core, u3, 2),
        "Z3": lambda: expand(made["Z2"], u4, 3),
        "Z4": lambda: layer.weight_gradient(made["Z3"], made["Z1"], groups=1),
        "dW": from_channel_ranks,
    }
    costs = {}
    for name, step in steps.items():
        costs[name] = multiply_adds(lambda step=step, name=name: made.update({name: step()}))
    return made["dW"], costs


@given(layers())
def test_plain_counts_are_those_of_torch(layer: Layer) -> None:
    c, x, w = layer.conv, layer.input(), layer.weight()
    done = multiply_adds(lambda: F.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, c.groups))
    assert cost.plain_forward(c) == done

    def by_group() -> None:
        # torch counts a grouped weight gradient as a dense one.
        for part, grad in zip(x.chunk(c.groups, 1), layer.grad().chunk(c.groups, 1), strict=True):
            layer.weight_gradient(part, grad, groups=1)

    assert cost.plain_weight_gradient(c) == multiply_adds(by_group)


@given(layers(grouped=False))
def test_the_gradient_of_the_input_costs_what_torch_counts(layer: Layer) -> None:
    c = layer.conv
    args = (None, [layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2, False, [0, 0], 1, (True, False, False))
    backward = torch.ops.aten.convolution_backward
    assert cost.plain_input_gradient(c) == multiply_adds(
        lambda: backward(layer.grad(), layer.input(), layer.weight(), *args)
    )


@given(layers(padded=False))
def test_the_published_forward_differs_by_positions_and_groups_alone(layer: Layer) -> None:
    c = layer.conv
    published = cost.plain_forward_as_published(c)
    assert published * c.positions == cost.plain_forward(c) * c.groups * c.height * c.width


@given(layers_and_ranks(padded=False))
def test_hosvds_weight_gradient_is_the_contraction_and_costs_what_torch_counts(
    drawn: tuple[Layer, tuple[int, ...]],
) -> None:
    layer, ranks = drawn
    core = torch.randn(ranks, dtype=torch.float64)
    factors = [torch.randn(n, k, dtype=torch.float64) for n, k in zip(layer.conv.shape, ranks, strict=True)]
    grad = layer.grad()
    made, costs = contraction(layer, core, factors, grad)
    assert cost.hosvd_weight_gradient_steps(layer.conv, ranks) == costs
    assert cost.hosvd_weight_gradient(layer.conv, ranks) == sum(costs.values())
    dense = core
    for mode, factor in enumerate(factors):
        dense = expand(dense, factor, mode)
    assert_close(made, layer.weight_gradient(dense, grad), atol=1e-9, rtol=1e-9)


@given(layers_and_ranks(grouped=False))
def test_svds_weight_gradients_cost_what_torch_counts(drawn: tuple[Layer, tuple[int, ...]]) -> None:
    layer, ranks = drawn
    rank = min(ranks[0], layer.conv.elements // layer.conv.batch)
    left, core = torch.randn(layer.conv.batch, rank).double(), torch.randn(rank, *layer.conv.shape[1:]).double()
    grad, taps = layer.grad(), (layer.conv.kernel,) * 2

    def restored() -> None:
        layer.weight_gradient(expand(core, left, 0), grad)

    assert cost.svd_weight_gradient(layer.conv, rank) == multiply_adds(restored)
    geometry = Geometry(taps, (layer.stride,) * 2, ((layer.padding,) * 2,) * 2, (layer.dilation,) * 2)
    operands = Operands(core, {BATCH: left})
    done = multiply_adds(lambda: reduced_route(operands, grad, layer.weight(), geometry))
    assert cost.svd_weight_gradient_projected(layer.conv, rank) == done


@given(layers(largest=9))
def test_hosvds_bases_cost_what_the_library_does(layer: Layer) -> None:
    shape = layer.conv.shape
    assume(all(size <= layer.conv.unfolding(mode)[1] for mode, size in enumerate(shape)))
    x, kept = layer.input(), []
    with patch.object(modes, "JOINT", 0):  # A Gram matrix for small modes together has more multiply-adds.
        done = multiply_adds(lambda: kept.append(hosvd(x, [0.9] * 4)))
    _, factors, _ = kept[0]
    bases = sum(cost.gram_basis(*layer.conv.unfolding(mode)) for mode, size in enumerate(shape) if size > 1)
    assert bases + multiply_adds(lambda: project(x, factors)) == done


@given(layers_and_ranks(largest=9))
def test_hosvds_projection_costs_what_the_library_does(drawn: tuple[Layer, tuple[int, ...]]) -> None:
    layer, ranks = drawn
    shape = layer.conv.shape
    factors = {m: torch.randn(n, k).double() for m, (n, k) in enumerate(zip(shape, ranks, strict=True)) if k < n}
    bases = sum(cost.gram_basis(*layer.conv.unfolding(mode)) for mode, size in enumerate(shape) if size > 1)
    done = multiply_adds(lambda: project(layer.input(), factors))
    assert cost.hosvd_overhead_by_gram(layer.conv, ranks) == bases + done


@given(layers())
def test_svds_forward_by_a_gram_matrix_costs_what_the_library_does(layer: Layer) -> None:
    assume(layer.conv.unfolding(0)[0] <= layer.conv.unfolding(0)[1])
    kept = []
    done = multiply_adds(lambda: kept.append(SVD(0.8).compress(layer.input())))
    assert cost.svd_overhead_by_gram(layer.conv, kept[0].ranks[0]) == done


@given(layers())
def test_published_overheads_count_full_decompositions(layer: Layer) -> None:
    c = layer.conv
    pairs = [c.unfolding(mode) for mode in range(4)]
    assert cost.hosvd_overhead_as_published(c) == sum(cost.full_svd(*pair) for pair in pairs)
    assert cost.svd_overhead_as_published(c) == cost.full_svd(*pairs[0])
    for m, p in pairs:
        assert cost.full_svd(m, p) * min(m, p) == cost.economy_svd(m, p) * max(m, p)
        assert cost.economy_svd(m, p) < cost.gram_basis(m, p) <= 2 * cost.economy_svd(m, p)
        assert cost.gram_basis(m, p) == cost.gram_basis(p, m)


@pytest.mark.parametrize("taps", [1, 3, 7])
@pytest.mark.parametrize(("size", "rank"), [(8, 1), (8, 8), (64, 4), (200, 1)])
def test_a_cubes_speedups_are_their_closed_forms(size: int, rank: int, taps: int) -> None:
    n, k, d = size, rank, taps
    conv, ranks = Convolution.cube(n, d), (k,) * 4
    backward = k * n**4 + n * k**4 + n**2 * k**3 + d**2 * n**3 * k**2 + d**2 * n**2 * k
    assert speed.hosvd_backward_speedup(conv, ranks) == pytest.approx(d**2 * n**5 / backward)
    assert speed.hosvd_step_speedup_as_published(conv, ranks) == pytest.approx(
        2 * d**2 * n**5 / (d**2 * n**5 + 4 * n**7 + backward)
    )
    assert cost.hosvd_overhead_as_published(conv) == 4 * n**7


@given(layers_and_ranks())
def test_speedups_are_ordered_as_their_counts_are(drawn: tuple[Layer, tuple[int, ...]]) -> None:
    layer, ranks = drawn
    c = layer.conv
    rank = min(ranks[0], *c.unfolding(0))
    assert speed.svd_backward_speedup(c, rank) < 1
    assert speed.svd_step_speedup_as_published(c, rank) < 1
    forward, backward = cost.plain_forward(c), cost.plain_weight_gradient(c)
    added = cost.hosvd_overhead_by_gram(c, ranks)
    whole = forward + added + cost.hosvd_weight_gradient(c, ranks)
    assert speed.hosvd_step_speedup_by_gram(c, ranks) == pytest.approx((forward + backward) / whole)
    projected = cost.svd_overhead_by_gram(c, rank) + cost.svd_weight_gradient_projected(c, rank)
    assert speed.svd_step_speedup_by_gram(c, rank) == pytest.approx((forward + backward) / (forward + projected))


@given(layers_and_ranks())
def test_higher_ranks_cost_more(drawn: tuple[Layer, tuple[int, ...]]) -> None:
    layer, ranks = drawn
    for mode, (rank, size) in enumerate(zip(ranks, layer.conv.shape, strict=True)):
        more = (*ranks[:mode], min(rank + 1, size), *ranks[mode + 1 :])
        grown = cost.hosvd_weight_gradient(layer.conv, more) - cost.hosvd_weight_gradient(layer.conv, ranks)
        assert (grown > 0) == (rank < size)


def test_a_rank_over_the_unfoldings_is_refused() -> None:
    conv = Convolution.of_layer(4, 1, 1, 3, 1, 1)
    for count in (cost.svd_weight_gradient, cost.svd_weight_gradient_projected, cost.svd_overhead_by_gram):
        with pytest.raises(ConfigError, match="expected 1, each from 1 to"):
            count(conv, 4)
    with pytest.raises(ConfigError, match="expected 4"):
        cost.hosvd_weight_gradient(conv, (1, 1, 1))
