"""Byte budgets: the allocation against brute force, and the measured bytes of the model that comes out."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tuckprop
from tuckprop import ASI, HOSVD, SVD, GradientFilter, Subspace
from tuckprop.allocation import Option, allocate
from tuckprop.budget import Table, example_loss, parse_bytes, tabulate
from tuckprop.codecs import Codec, Dense
from tuckprop.errors import ConfigError

options = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 1)).map(lambda pair: Option(Dense(), *pair)), min_size=1, max_size=4
)


@given(st.lists(options, min_size=1, max_size=4), st.integers(1, 200))
def test_the_allocation_fits_and_no_single_upgrade_is_left(tables: list[list[Option]], budget: int) -> None:
    named = {str(number): table for number, table in enumerate(tables)}
    choices = list(itertools.product(*tables))
    affordable = [choice for choice in choices if sum(o.nbytes for o in choice) <= budget]
    if not affordable:
        with pytest.raises(ConfigError, match="too few"):
            allocate(named, budget)
        return
    chosen = allocate(named, budget)
    spent = sum(option.nbytes for option in chosen.values())
    assert spent <= budget
    for site, option in chosen.items():
        assert option in named[site]
        for other in named[site]:
            assert other.error >= option.error or spent - option.nbytes + other.nbytes > budget


@given(st.lists(options, min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_at_a_price_of_the_hull_the_allocation_is_optimal(tables: list[list[Option]], share: float) -> None:
    named = {str(number): table for number, table in enumerate(tables)}
    price = share / 10
    chosen = {s: min(t, key=lambda o: (o.error + price * o.nbytes, o.nbytes)) for s, t in named.items()}
    budget = sum(option.nbytes for option in chosen.values())
    best = min(
        sum(o.error for o in choice) for choice in itertools.product(*tables) if sum(o.nbytes for o in choice) <= budget
    )
    assert sum(o.error for o in allocate(named, budget).values()) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"), [("64MB", 64_000_000), ("1 GiB", 2**30), ("1.5kib", 1536), ("12", 12), (12, 12), ("7b", 7)]
)
def test_byte_texts(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("bad", ["", "MB", "3 apples", "-4MB", 0, -1, 1.5, True, "nan", "inf", None])
def test_bad_byte_texts(bad: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        parse_bytes(bad)  # type: ignore[arg-type]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )


def smooth_images(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(16, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False) + 0.1


@pytest.mark.parametrize("codec", [HOSVD(), Subspace(), ASI()], ids=repr)
def test_the_measured_bytes_are_within_a_tenth_of_the_budget(codec: HOSVD | Subspace | ASI) -> None:
    model, x = network(), smooth_images(0)
    labels = torch.arange(16) % 10
    plain = tuckprop.measure(model, lambda m: F.cross_entropy(m(x), labels)).held_bytes
    errors = []
    for share in (0.5, 0.7):
        budget = int(share * plain)
        plan = tuckprop.plan(model, x, codec, budget=budget, loss_fn=lambda out: F.cross_entropy(out, labels))
        converted = tuckprop.convert(network(), plan)
        held = tuckprop.measure(converted, lambda m: F.cross_entropy(m(x), labels)).held_bytes
        assert held <= 1.1 * budget
        exact, lossy = gradients(model, x, labels), gradients(converted, x, labels)
        errors.append(float((exact - lossy).norm() / exact.norm()))
    assert errors[1] <= errors[0] + 1e-6
    assert not any(isinstance(module, tuckprop.layers.Twin) for module in model.modules())


def test_asis_ranks_are_judged_as_published() -> None:
    """By HOSVD's ranks at the six shares of variance, and the Frobenius error that they make in the weight gradient."""
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)), smooth_images(0)
    converted = tuckprop.convert(model, tuckprop.Dense())
    tables = tabulate(converted, ASI(), ["0"], lambda: converted(x).square().sum())
    weight = model[0].weight
    exact = torch.autograd.grad(F.conv2d(x, weight, model[0].bias, padding=1).square().sum(), weight)[0]
    grad = 2 * F.conv2d(x, weight, model[0].bias, padding=1).detach()
    expected = {}
    for share in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        packed = HOSVD(share).compress(x)
        lossy = torch.ops.aten.convolution_backward(
            grad, packed.dense(), weight.detach(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        ranks = packed.ranks
        count = math.prod(ranks) + sum(n * k for n, k in zip(x.shape, ranks, strict=True))
        if 4 * count < 4 * x.numel():
            expected.setdefault(4 * count, (ranks, float((lossy - exact).norm())))
    found = {option.nbytes: (option.codec.ranks, option.error) for option in tables["0"].options() if option.error}
    assert found.keys() >= expected.keys()
    for nbytes, (ranks, error) in expected.items():
        assert found[nbytes][0] == ranks
        assert found[nbytes][1] == pytest.approx(error, rel=1e-3)
    # Beyond the published ones, there are some that lose less.
    assert min(error for _, error in found.values()) < 0.5 * min(error for _, error in expected.values())


def gradients(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


class ZeroScaled(nn.Module):
    """A residual block whose last scale starts at zero, as timm's do: no gradient reaches its convolutions at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.second(self.first(x).relu()))


class LowRank(nn.Module):
    """A frozen Linear layer and an update of low rank, the second factor of which starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def zero_scaled() -> tuple[nn.Module, Tensor, list[str]]:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 3, padding=1)
    model = nn.Sequential(
        stem, ZeroScaled(16), ZeroScaled(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    return model, smooth_images(0), ["1.first", "1.second", "2.first", "2.second"]


def low_rank() -> tuple[nn.Module, Tensor, list[str]]:
    torch.manual_seed(0)
    blocks = [nn.Sequential(LowRank(32), nn.LayerNorm(32)) for _ in range(3)]
    return nn.Sequential(*blocks), smooth_images(0).flatten(1, 2), [f"{number}.0.down" for number in range(3)]


@pytest.mark.parametrize("codec", [HOSVD(), Subspace(), SVD(), ASI()], ids=repr)
@pytest.mark.parametrize("make", [zero_scaled, low_rank])
def test_without_gradients_a_budget_buys_what_the_codec_holds(
    make: Callable[[], tuple[nn.Module, Tensor, list[str]]], codec: Codec
) -> None:
    model, x, silent = make()
    # ASI has no settings by default: as good as HOSVD, from which it takes its ranks.
    usual = HOSVD(0.8) if isinstance(codec, ASI) else codec
    budget = int(1.05 * tuckprop.plan(model, x, usual).predicted_bytes)
    plan = tuckprop.plan(model, x, codec, budget=budget)
    assert 0.8 * budget <= plan.predicted_bytes <= budget
    codecs = {site.name: site.codec for site in plan.sites}
    assert sum(codecs[name] == Dense() for name in silent) <= len(silent) // 2
    held = tuckprop.measure(tuckprop.convert(model, plan), lambda m: m(x).sum()).held_bytes
    assert held <= budget


@pytest.mark.parametrize("codec", [HOSVD(), Subspace(), SVD(), ASI()], ids=repr)
def test_without_a_gradient_the_activation_tells_settings_apart(codec: Codec) -> None:
    model, x, silent = zero_scaled()
    converted = tuckprop.convert(model, Dense())
    tables = tabulate(converted, codec, ["0", *silent], lambda: example_loss(converted(x)))
    halved = tabulate(converted, codec, ["0", *silent], lambda: 0.5 * example_loss(converted(x)))
    for name in silent:
        options = tables[name].options()
        assert [option.nbytes for option in options if option.whole] == [options[-1].nbytes]
        errors = [option.error for option in options]
        assert errors[-1] == 0 < errors[-2] < 0.1 * errors[0]
        # In the scale of the sites that have a gradient, which ASI's errors follow.
        scale = 0.5 if isinstance(codec, ASI) else 1.0
        for one, other in zip(options, halved[name].options(), strict=True):
            assert other.error == pytest.approx(scale * one.error, rel=1e-3, abs=1e-12)


def test_a_form_that_loses_nothing_is_still_a_form() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)), smooth_images(0)
    whole, form = Option(Dense(), 4 * x.numel(), 0.0), Option(HOSVD(0.5), 200, 0.0)
    plan = tuckprop.plan(model, x, HOSVD(0.5))
    plan = replace(plan, sites=(replace(plan.sites[0], options=(whole, form)),), budget=10**6, form_bytes=10**6)
    site = tuckprop.convert(model, plan)[0]._site
    for option in (whole, form):
        site.choose(option)
        assert site.codec == option.codec


def test_a_budget_too_small_says_the_least() -> None:
    with pytest.raises(ConfigError, match="at least"):
        tuckprop.plan(network(), smooth_images(0), HOSVD(), budget=1000)


def test_a_codec_without_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match="no epsilon"):
        tuckprop.plan(network(), smooth_images(0), GradientFilter(2), budget="1MB")
    with pytest.raises(ConfigError, match="a single codec config"):
        tuckprop.plan(network(), smooth_images(0), {"*": HOSVD()}, budget="1MB")


def test_what_a_setting_takes_moves_those_beside_it() -> None:
    known = {nbytes: HOSVD(epsilon) for nbytes, epsilon in ((1000, 0.8), (4000, 0.9))}
    table = Table([Option(HOSVD(0.8), 1000, 0.2), Option(HOSVD(0.9), 4000, 0.1), Option(Dense(), 9000, 0.0)], known)
    sizes = [option.nbytes for option in table.options()]
    assert all(before < after <= 1.11 * before for before, after in itertools.pairwise(sizes[:-1]))
    settings = [option.codec.epsilon for option in table.options()[:-1]]
    assert settings == sorted(set(settings))
    middle = table.options()[len(sizes) // 2]
    assert not table.learn(table.options()[0], 1000)
    assert table.learn(middle, 3500)
    learnt = {option.codec: option for option in table.options()}
    assert learnt[middle.codec].nbytes == 3500
    assert not table.learn(learnt[middle.codec], 3500)
    # Those below it are drawn up to it, those above lie between it and the next that was measured.
    below = [option.nbytes for option in table.options() if not option.whole and option.codec.epsilon < 0.84]
    above = [o.nbytes for o in table.options() if not o.whole and o.codec.epsilon > middle.codec.epsilon]
    assert len(below) > 3
    assert all(3500 < nbytes <= 4000 for nbytes in above)
    assert [o.codec.epsilon for o in table.options()[:-1]] == sorted({o.codec.epsilon for o in table.options()[:-1]})


def test_what_several_forms_take_alike_is_offered_once() -> None:
    """Where codes take as many bytes at 0.9 as at 0.95, what lies beyond begins at the latter."""
    form = Option(Subspace(0.9), 1000, 0.2)
    table = Table([form, Option(Subspace(0.98), 2000, 0.1)], {1000: Subspace(0.95), 2000: Subspace(0.98)})
    assert all(option.codec.epsilon > 0.95 for option in table.options()[1:])
    assert len(table.options()) > 4
