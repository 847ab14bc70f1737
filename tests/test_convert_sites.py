"""Which layers `convert` takes, and which it leaves alone and lists."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

from tests.cases import RandomTucker, decaying
from tests.converting import BATCH, TIGHT, gradients, network, twins
from tests.networks import CONVOLUTIONS
from tuckprop import HOSVD, SVD, Dense, convert, revert
from tuckprop.errors import ConfigError
from tuckprop.plan import choose_sites, decide

# Choosing sites


def test_every_convolution_and_linear_layer_by_default() -> None:
    assert twins(convert(network(), HOSVD(0.7))) == [*CONVOLUTIONS, "head"]


def test_select_picks_sites() -> None:
    seen = []

    def select(name: str, module: nn.Module) -> bool:
        seen.append((name, type(module)))
        return getattr(module, "groups", 1) > 1

    assert twins(convert(network(), HOSVD(0.7), select=select)) == ["block.depthwise"]
    assert seen == [*((name, nn.Conv2d) for name in CONVOLUTIONS), ("head", nn.Linear)]


def test_what_select_leaves_out_is_listed() -> None:
    skipped = decide(network(), HOSVD(0.7), select=lambda name, module: name == "stem").skipped
    assert {s.name: s.reason for s in skipped if s.kind in {"Conv2d", "Linear"}} == dict.fromkeys(
        [*CONVOLUTIONS[1:], "head"], "not among the chosen layers"
    )


def test_a_mapping_gives_the_first_pattern_that_matches() -> None:
    choice = {"block.*": SVD(0.5), "*.0": HOSVD(0.6), "*": Dense()}
    model = convert(network(), choice, pointwise=False)
    assert {name: model.get_submodule(name)._site.codec for name in twins(model)} == {
        "stem": Dense(),
        "block.expand": SVD(0.5),
        "block.depthwise": SVD(0.5),
        "block.project": SVD(0.5),
        "tail.0": HOSVD(0.6),
        "head": Dense(),
    }


def test_a_pattern_may_match_what_has_no_place_for_a_codec_or_a_second_name() -> None:
    model = network()
    model.again = model.stem
    decided = decide(model, {"again": HOSVD(0.7), "act": HOSVD(0.7), "block": HOSVD(0.7), "stem": SVD(0.7)})
    assert {site.name: site.codec for site in decided.sites if site.kind == "Conv2d"} == {"stem": SVD(0.7)}


def test_what_no_pattern_matches_is_left_alone_and_listed() -> None:
    decided = decide(network(), {"stem": HOSVD(0.7)})
    assert [site.name for site in decided.sites if site.kind == "Conv2d"] == ["stem"]
    reasons = {s.name: s.reason for s in decided.skipped}
    assert reasons["tail.0"] == "no pattern of the codec mapping matches its name"


def test_pointwise_layers_are_left_alone_on_request() -> None:
    model = network()
    others = {name: type(m) for name, m in model.named_modules() if name not in choose_sites(model)}
    convert(model, HOSVD(0.7), pointwise=False)
    assert {name: type(m) for name, m in model.named_modules() if name in others} == others


# Layers and weights that are shared


class Shared(nn.Module):
    """One layer under two names, used at both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.only = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(self.second(torch.relu(self.first(x))))


class Twice(nn.Module):
    """One layer used twice, on different tensors and on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x)) + self.layer(x)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 6)
        self.up = nn.Linear(6, 6, bias=False)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x.transpose(1, -1)[..., :6, :6])))


@pytest.mark.parametrize("kind", [Shared, Twice, Tied])
@pytest.mark.parametrize("codec", [HOSVD(1.0), RandomTucker(1.0)], ids=repr)
def test_sharing(kind: Callable[[], nn.Module], codec: Any, forced: None) -> None:
    x = decaying((4, 4 if kind is not Tied else 6, 6, 6), seed=1)
    plain = network(kind)
    converted = convert(copy.deepcopy(plain), codec)
    for model in (plain, converted):
        y = model(x)
        y.square().sum().backward()
    assert torch.equal(plain(x), converted(x))
    for (name, expected), got in zip(plain.named_parameters(), converted.parameters(), strict=True):
        assert_close(got.grad, expected.grad, msg=name, **TIGHT)


def test_a_layer_under_two_names_is_one_site_and_stays_one_object() -> None:
    model = convert(network(Shared), HOSVD(0.7))
    assert model.first is model.second
    assert model.first._site.name == "first"
    assert [site.name for site in decide(network(Shared), HOSVD(0.7)).sites] == ["first", "only"]
    revert(model)
    assert type(model.second) is nn.Conv2d


def test_tied_weights_stay_tied() -> None:
    model = convert(network(Tied), HOSVD(0.7))
    assert model.up.weight is model.down.weight
    assert revert(model).up.weight is model.down.weight


# Layers that compute otherwise


class Plus(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_a_subclass_is_left_alone_and_listed() -> None:
    model = nn.Sequential(Plus(3, 4, 3), nn.Conv2d(4, 4, 3)).double()
    expected = model(BATCH)
    (skipped,) = decide(model, HOSVD(0.7)).skipped
    assert (skipped.name, skipped.kind) == ("0", "Plus")
    assert "subclass of Conv2d" in skipped.reason
    convert(model, HOSVD(0.7))
    assert type(model[0]) is Plus
    assert torch.equal(model(BATCH), expected)


def test_a_layer_that_is_parametrized_is_left_alone_and_listed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)).double()
    expected = model(BATCH)
    (skipped,) = decide(model, HOSVD(0.7)).skipped
    assert skipped.name == "0"
    convert(model, HOSVD(0.7))
    assert parametrize.is_parametrized(model[0])
    assert torch.equal(model(BATCH), expected)
    revert(model)
    assert torch.equal(model(BATCH), expected)


def test_a_parametrization_of_a_converted_layer_works_and_must_go_before_the_revert() -> None:
    model = convert(network(), HOSVD(1.0))
    plain = network()
    for each in (model, plain):
        torch.manual_seed(0)
        parametrizations.orthogonal(each.tail[0])
    assert torch.equal(model(BATCH), plain(BATCH))
    assert_close(gradients(model), gradients(plain), **TIGHT)
    with pytest.raises(ConfigError, match=r"'tail\.0' was parametrized after its conversion"):
        revert(model)
    assert twins(model) == [*CONVOLUTIONS, "head"]  # Nothing was reverted by half.
    parametrize.remove_parametrizations(model.tail[0], "weight")
    assert twins(revert(model)) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_that_sets_the_weight_in_a_hook() -> None:
    plain, model = (nn.utils.weight_norm(nn.Conv2d(3, 4, 3).double()) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    convert(model, HOSVD(1.0))
    for each in (plain, model):
        each(BATCH).square().sum().backward()
    for expected, got in zip(plain.parameters(), model.parameters(), strict=True):
        assert_close(got.grad, expected.grad, **TIGHT)


def test_lazy_layers_are_listed_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ConfigError, match=r"nothing to compress.*run the model once first"):
        convert(model, HOSVD(0.7))
    model(BATCH.float())
    assert twins(convert(model, HOSVD(0.7))) == ["0", "2"]
