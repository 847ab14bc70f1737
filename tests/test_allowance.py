"""Budgets in training: what is held follows the budget, whatever activations do, and nothing is changed needlessly."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tuckprop
from tuckprop import ASI, HOSVD, SVD, Subspace, WarmState, allocation
from tuckprop.allocation import Option
from tuckprop.codecs import Codec, Dense
from tuckprop.layers._allowance import Allowance
from tuckprop.memory import census


class Site:
    """A site whose form takes a number of bytes that follows the setting and the weather."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nbytes = 0
        self.changes = 0

    def choose(self, option: Option) -> None:
        self.nbytes = option.nbytes
        self.changes += 1


def options() -> list[Option]:
    return [Option(HOSVD(1 - 2.0**-n), 10 * 2**n, 2.0**-n) for n in range(1, 12)]


def fleet(count: int) -> tuple[Allowance, list[Site]]:
    """Return sites that take 160 bytes each, and a budget of that and 1000 bytes for the rest."""
    allowance = Allowance(1000 + 160 * count, 160 * count)
    sites = [Site(str(number)) for number in range(count)]
    for site in sites:
        allowance.watch(site, options(), 3)
        site.nbytes = 160
    return allowance, sites


MODEL = nn.Identity()

factors = st.lists(st.floats(0.3, 3), min_size=20, max_size=20)


def forward(allowance: Allowance, sites: list[Site], weather: float | Sequence[float], elements: int = 1000) -> float:
    """Run one forward, in which forms take so many times what settings say, all or each; return held over budget."""
    allowance(MODEL, ())
    weathers = weather if isinstance(weather, Sequence) else [weather] * len(sites)
    for site, factor in zip(sites, weathers, strict=True):
        tries = 3
        while not allowance.affords(site.name, round(factor * site.nbytes), elements) and tries:
            tries -= 1
        allowance.add(site.name, round(factor * site.nbytes), elements)
    return (allowance.budget - allowance.form_bytes + allowance.taken) / allowance.budget


@pytest.mark.parametrize("weather", [0.4, 0.8, 1.3, 2.5])
def test_what_is_held_comes_back_to_the_budget(weather: float) -> None:
    allowance, sites = fleet(20)
    held = [forward(allowance, sites, weather) for _ in range(30)]
    assert abs(held[0] - 1) > 0.1
    assert all(abs(share - 1) < 0.1 for share in held[10:])
    settled = [site.changes for site in sites]
    forward(allowance, sites, weather)
    assert [site.changes for site in sites] == settled


@given(st.lists(factors, min_size=1, max_size=8))
def test_no_forward_goes_over_the_budget(weathers: list[list[float]]) -> None:
    """Not even where every site's form takes three times, or a third, of what it took in the forward before."""
    allowance, sites = fleet(20)
    forward(allowance, sites, 1.0)
    assert all(forward(allowance, sites, weather) <= 1.1 for weather in weathers)


class Grained(Site):
    """A site whose form takes whole ranks."""

    def takes(self, weather: float) -> int:
        return 40 * math.ceil(weather * self.nbytes / 40)


@given(st.integers(1, 4), st.lists(st.lists(st.floats(0.4, 2.5), min_size=4, max_size=4), min_size=1, max_size=12))
def test_a_few_sites_keep_to_the_budget_too(count: int, weathers: list[list[float]]) -> None:
    """The last site makes up for what the others lack, with what its form is found to take, by rank after rank."""
    ladder = [Option(HOSVD(1 - 1.2**-n), round(10 * 1.1**n), 1.2**-n) for n in range(1, 70)]
    allowance, sites = Allowance(1000, 900), [Grained(str(number)) for number in range(count)]
    for site in sites:
        number = min(range(len(ladder)), key=lambda n: abs(ladder[n].nbytes - 900 / count))
        allowance.watch(site, ladder, number)
        site.nbytes = ladder[number].nbytes
    for weather in [[1.0] * 4, *weathers]:
        allowance(MODEL, ())
        for site, factor in zip(sites, weather, strict=False):
            tries = 8
            while not allowance.affords(site.name, site.takes(factor), 1000) and tries:
                tries -= 1
            allowance.add(site.name, site.takes(factor), 1000)
        assert abs(allowance.taken + 100 - 1000) <= 100


def test_a_site_that_is_kept_whole_and_never_asks_is_not_waited_for() -> None:
    allowance, sites = fleet(3)
    head = Site("head")
    allowance.watch(head, [Option(HOSVD(0.5), 20, 0.1), Option(Dense(), 80, 0.0)], 1)
    allowance.budget, allowance.form_bytes = allowance.budget + 80, allowance.form_bytes + 80

    def step(weathers: list[float]) -> float:
        share = forward(allowance, sites, weathers)
        allowance.add(head.name, 80, 1000)
        return share + 80 / allowance.budget

    step([1.0] * 3)
    # What the last one shrinks by, it makes up for itself.
    changes = sites[2].changes
    allowance.budget = allowance.budget - 900
    assert abs(step([1.0, 1.0, 0.2]) - 1) <= 0.1
    assert sites[2].changes > changes


def test_settings_in_any_order_are_put_in_order() -> None:
    allowance, site = Allowance(1000, 900), Site("0")
    mixed = [options()[number] for number in (5, 2, 7, 0, 4)]
    allowance.watch(site, mixed, 2)
    assert [option.nbytes for option in allowance.options["0"]] == sorted(option.nbytes for option in mixed)
    assert allowance.options["0"][allowance.chosen["0"]] is mixed[2]


def forward_of(allowance: Allowance, uses: list[tuple[Site, int, float]]) -> float:
    """Run one forward, in which sites are used one after the other on so many elements; return held over budget."""
    allowance(MODEL, ())
    for site, elements, weather in uses:
        for _ in range(4):
            nbytes = round(weather * site.nbytes * elements / 1000)
            if allowance.affords(site.name, nbytes, elements):
                break
        allowance.add(site.name, nbytes, elements)
    return (allowance.budget - allowance.form_bytes + allowance.taken) / allowance.budget


def test_a_site_that_is_used_on_several_sizes_is_expected_to_be() -> None:
    allowance, sites = fleet(6)
    shared, *own = sites
    uses = [(shared, 800, 1.0), *((site, 1000, 1.0) for site in own[:3]), (shared, 150, 1.0)]
    uses += [*((site, 1000, 1.0) for site in own[3:]), (shared, 50, 1.0)]
    assert [forward_of(allowance, uses) for _ in range(5)] == [1.0] * 5
    assert not any(site.changes for site in sites)


@pytest.mark.parametrize("growth", [0.4, 2.5])
def test_a_site_that_is_used_several_times_packs_again_for_all_of_them(growth: float) -> None:
    allowance, sites = fleet(8)
    shared, *own = sites
    uses = [(shared, 250, 1.0), *((site, 1000, 1.0) for site in own), *([(shared, 250, 1.0)] * 3)]
    for _ in range(3):
        forward_of(allowance, uses)
    grown = [(site, elements, growth if site is shared else 1.0) for site, elements, _ in uses]
    assert all(abs(forward_of(allowance, grown) - 1) <= 0.1 for _ in range(5))


def test_smaller_batches_are_followed_when_they_stay() -> None:
    allowance, sites = fleet(20)
    forward(allowance, sites, 1.0)
    for _ in range(7):
        forward(allowance, sites, 0.5, elements=500)
    held = [forward(allowance, sites, 0.5, elements=500) for _ in range(12)]
    assert held[0] < 0.7
    assert abs(held[-1] - 1) <= 0.1


def test_training_a_part_in_eval_mode_is_followed() -> None:
    allowance, sites = fleet(20)
    MODEL.eval()
    try:
        held = [forward(allowance, sites, 0.5) for _ in range(12)]
    finally:
        MODEL.train()
    assert abs(held[-1] - 1) <= 0.1


@pytest.mark.parametrize("odd", [0, 10, 19])
def test_one_form_that_grows_is_made_up_for_in_the_same_forward(odd: int) -> None:
    allowance, sites = fleet(20)
    for _ in range(3):
        forward(allowance, sites, 1.0)
    weather = [8.0 if number == odd else 1.0 for number in range(20)]
    assert abs(forward(allowance, sites, weather) - 1) <= 0.1
    assert sites[0].changes == (odd == 0)
    assert sum(site.changes for site in sites) > 0


def test_one_form_that_shrinks_leaves_its_bytes_to_those_behind_it() -> None:
    allowance, sites = fleet(4)
    for _ in range(3):
        forward(allowance, sites, 1.0)
    assert abs(forward(allowance, sites, [0.2, 0.2, 1.0, 1.0]) - 1) <= 0.1
    assert [site.changes for site in sites[:2]] == [0, 0]
    assert sites[2].changes + sites[3].changes


def test_what_stays_below_for_lack_of_settings_is_not_run_after(monkeypatch: pytest.MonkeyPatch) -> None:
    allowance, sites = fleet(20)
    for site in sites:
        allowance.options[site.name] = options()[:4]
    asked = []
    monkeypatch.setattr(
        "tuckprop.layers._allowance.allocate", lambda *given: (asked.append(1), allocation.allocate(*given))[1]
    )
    for _ in range(20):
        forward(allowance, sites, 0.4)
    # Some forwards ask, and a site does not.
    assert len(asked) < 20


def test_within_the_band_nothing_is_changed() -> None:
    allowance, sites = fleet(20)
    for weather in (1.0, 0.95, 1.02, 0.93, 1.0):
        forward(allowance, sites, weather)
    assert not any(site.changes for site in sites)


def test_a_small_batch_an_evaluation_and_what_has_no_form_say_nothing() -> None:
    allowance, sites = fleet(20)
    forward(allowance, sites, 1.0)
    for _ in range(5):
        forward(allowance, sites, 0.3, elements=300)
    allowance(MODEL, ())
    allowance.ignore()
    for site in sites:
        assert allowance.affords(site.name, 3 * site.nbytes, 1000)
        allowance.add(site.name, 3 * site.nbytes, 1000)
    forward(allowance, sites, 1.0)
    with torch.no_grad():
        forward(allowance, sites, 1.0)
        forward(allowance, sites, 1.0)
    assert not any(site.changes for site in sites)


def test_a_budget_out_of_reach_is_not_run_after() -> None:
    allowance, sites = fleet(4)
    for _ in range(60):
        forward(allowance, sites, 100.0)
    # All are as small as they can be, and stay.
    assert all(site.nbytes == 20 for site in sites)
    assert sum(site.changes for site in sites) < 60


def network() -> nn.Sequential:
    torch.manual_seed(0)
    widths = [3, 16, 32, 32, 64, 64]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        stride = 2 if after > before > 3 else 1
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy copies of four smooth pictures, and which they are of."""
    smooth = F.interpolate(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(99)), (24, 24))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (32,), generator=generator)
    return smooth[labels] + 0.7 * torch.randn(32, 3, 24, 24, generator=generator), labels


def train(model: nn.Module, steps: range) -> list[int]:
    """Train; return what each step held."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    held = []
    for step in steps:
        images, labels = batch(step)
        with census(model) as counted:
            loss = F.cross_entropy(model(images), labels)
            held.append(counted.held_bytes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return held


# Long enough for activations to leave what a plan measured.
STEPS = range(80)


def planned(codec: Codec, share: float, last: int | None = None) -> tuple[nn.Module, int]:
    model, (images, labels) = network(), batch(0)
    if last:
        tuckprop.freeze(model, last=last)
    plain = tuckprop.measure(model, lambda m: F.cross_entropy(m(images), labels)).held_bytes
    budget = int(share * plain)
    plan = tuckprop.plan(
        model, images, codec, last=last, budget=budget, loss_fn=lambda out: F.cross_entropy(out, labels)
    )
    return tuckprop.convert(model, plan), budget


@pytest.mark.parametrize(
    ("codec", "share", "last"),
    [
        (HOSVD(), 0.3, None), (SVD(), 0.6, None), (Subspace(), 0.2, None),
        (HOSVD(), 0.3, 2), (SVD(), 0.3, 3), (Subspace(), 0.1, 2), (Subspace(), 0.15, 2), (Subspace(), 0.15, 3),
    ],
    ids=str,
)  # fmt: skip
def test_held_bytes_follow_the_budget_through_training(codec: Codec, share: float, last: int | None) -> None:
    model, budget = planned(codec, share, last)
    held = train(model, STEPS)
    within = [abs(nbytes / budget - 1) <= 0.1 for nbytes in held]
    assert all(within)


@pytest.mark.parametrize(
    ("codec", "least", "most"),
    # Beyond, Subspace keeps all that it packs as numbers of 8 bits, and what that loses is not worth more.
    [(HOSVD(), 0.1, 0.28), (SVD(), 0.3, 0.48), (Subspace(), 0.04, 0.145), (ASI(), 0.1, 0.28)],
    ids=str,
)
def test_a_plan_spends_what_it_is_given(codec: Codec, least: float, most: float) -> None:
    """Also where the first choice turns out to hold a little more than the budget."""
    model, (images, labels) = network(), batch(0)

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, labels)

    plain = tuckprop.measure(model, lambda m: loss(m(images))).held_bytes
    for share in (least + (most - least) * step / 6 for step in range(7)):
        budget = int(share * plain)
        converted = tuckprop.convert(network(), tuckprop.plan(model, images, codec, budget=budget, loss_fn=loss))
        # What the loss keeps is not the model's.
        held = tuckprop.measure(converted, lambda m: m(images).sum()).held_bytes
        assert 0.9 * budget <= held <= budget, share


def test_without_it_they_would_not() -> None:
    """What the test above sees is the doing of the allowance."""
    model, budget = planned(HOSVD(), 0.3)
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, Allowance):
                del module._forward_pre_hooks[key]
    held = train(model, STEPS)
    assert sum(abs(nbytes / budget - 1) <= 0.1 for nbytes in held) < 0.5 * len(held)


@pytest.mark.parametrize(
    "move", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"]
)
def test_a_copy_has_a_budget_of_its_own(move: Callable[[nn.Module], nn.Module]) -> None:
    model, _ = planned(HOSVD(), 0.3)
    train(model, range(5))
    twin = move(model)
    before = {name: module._site.codec for name, module in model.named_modules() if hasattr(module, "_site")}
    expected = train(twin, range(5, 20))
    assert before == {n: module._site.codec for n, module in model.named_modules() if hasattr(module, "_site")}
    assert train(model, range(5, 20)) == expected


def test_a_resumed_training_goes_on_as_it_would_have() -> None:
    model, _ = planned(Subspace(), 0.25)
    train(model, range(10))
    # A small batch, as an epoch ends with: what is expected of the next one is what the one before it took.
    images, labels = batch(99)
    F.cross_entropy(model(images[:5]), labels[:5]).backward()
    other, _ = planned(Subspace(), 0.25)
    other.load_state_dict(model.state_dict())
    WarmState(other).load_state_dict(WarmState(model).state_dict())
    assert train(other, range(10, 25)) == train(model, range(10, 25))
    with pytest.raises(ValueError, match="budget"):
        WarmState(tuckprop.convert(network(), Subspace())).load_state_dict(WarmState(model).state_dict())
    with pytest.raises(ValueError, match=r"setting .* of the budget is .* here, and .* in the checkpoint"):
        WarmState(planned(Subspace(slack=0.5), 0.25)[0]).load_state_dict(WarmState(model).state_dict())


def test_parts_with_budgets_of_their_own_resume_both() -> None:
    def both() -> nn.Sequential:
        return nn.Sequential(nn.ModuleDict({"one": planned(HOSVD(), 0.3)[0], "two": planned(HOSVD(), 0.2)[0]}))

    model, other = both(), both()
    for part in model[0].values():
        train(part, range(6))
    other.load_state_dict(model.state_dict())
    state = WarmState(model).state_dict()
    assert len(state["allowances"]) == 2
    WarmState(other).load_state_dict(state)
    assert WarmState(other).state_dict() == state


def test_it_goes_with_the_conversion() -> None:
    model, _ = planned(HOSVD(), 0.3)
    tuckprop.revert(model)
    assert not any(isinstance(hook, Allowance) for m in model.modules() for hook in m._forward_pre_hooks.values())


def test_a_plan_with_a_budget_survives_json() -> None:
    model, (images, labels) = network(), batch(0)
    plan = tuckprop.plan(model, images, HOSVD(), budget="1MB", loss_fn=lambda out: F.cross_entropy(out, labels))
    assert plan.budget == 10**6
    assert plan.form_bytes is not None
    assert any(site.options for site in plan.sites)
    assert tuckprop.Plan.from_json(plan.to_json()) == plan
