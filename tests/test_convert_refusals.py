"""Wrong arguments: each one clear error that says where, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from tests.converting import BATCH, kinds, network
from tests.networks import Transformer
from tuckprop import HOSVD, GradientFilter, Plan, convert, freeze, plan, revert
from tuckprop.errors import ConfigError, TuckpropError
from tuckprop.plan import SitePlan, decide


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no model": (lambda: convert([1], HOSVD()), r"convert\(model=\.\.\.\): expected a torch\.nn\.Module, got list"),
    "no codec": (
        lambda: convert(network(), "hosvd"),
        r"convert\(codec=\.\.\.\): expected a codec config \(.*hosvd.*\) or a mapping to them, got 'hosvd'",
    ),
    "a class for a codec": (lambda: convert(network(), HOSVD), r"convert\(codec=\.\.\.\): expected .*, got <class"),
    "a mapping to no codec": (
        lambda: convert(network(), {"*": 0.8}),
        r"convert\(codec=\.\.\.\): expected a mapping of name patterns to codec configs .*got '\*': 0\.8",
    ),
    "a mapping from no name": (lambda: convert(network(), {1: HOSVD()}), r"got 1: HOSVD\(epsilon=0\.8\)"),
    "last 0": (lambda: convert(network(), HOSVD(), last=0), r"last=\.\.\.\): expected an integer from 1 to 5, .*got 0"),
    "last 6": (lambda: convert(network(), HOSVD(), last=6), r"last=\.\.\.\): expected an integer from 1 to 5, .*got 6"),
    "last -1": (lambda: convert(network(), HOSVD(), last=-1), r"expected an integer from 1 to 5, .*got -1"),
    "last 2.0": (lambda: convert(network(), HOSVD(), last=2.0), r"expected an integer from 1 to 5, .*got 2\.0"),
    "last True": (lambda: convert(network(), HOSVD(), last=True), r"expected an integer from 1 to 5, .*got True"),
    "last in a transformer": (
        lambda: convert(network(Transformer), HOSVD(), last=13),
        r"last=\.\.\.\): expected an integer from 1 to 12, .*got 13",
    ),
    "freeze no model": (lambda: freeze("x", last=1), r"freeze\(model=\.\.\.\): expected a torch\.nn\.Module, got str"),
    "revert no model": (lambda: revert("x"), r"revert\(model=\.\.\.\): expected a torch\.nn\.Module, got str"),
    "freeze too many": (lambda: freeze(network(), last=6), r"expected an integer from 1 to 5, .*got 6"),
    "last of nothing": (
        lambda: convert(nn.Sequential(nn.Flatten()), HOSVD(), last=1),
        r"last=1\): the model has no convolution and no Linear layer",
    ),
    "select no function": (
        lambda: convert(network(), HOSVD(), select="stem"),
        r"convert\(select=\.\.\.\): expected a function of \(name, module\), got 'stem'",
    ),
    "select nothing": (
        lambda: convert(network(), HOSVD(), select=lambda name, module: False),
        r"convert\(select=\.\.\.\): it picks no convolution and no Linear layer",
    ),
    "nothing to compress": (lambda: convert(Nothing(), HOSVD()), r"nothing to compress in this Nothing"),
    "nothing that the codec serves": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), GradientFilter()),
        r"nothing to compress in this Sequential \(0: Gradient Filter is defined for Conv2d only\)",
    ),
    "nothing that a pattern matches": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), {"1": HOSVD()}),
        r"nothing to compress .*no pattern of the codec mapping matches",
    ),
    "a pattern that matches nothing": (
        lambda: convert(network(), {"blocks.*": HOSVD()}),
        r"codec=\.\.\.\): expected patterns of names of the model's modules \(near it: .*block\.expand.*\), "
        r"got 'blocks\.\*', which matches none",
    ),
    "a pattern that matches nothing, beside one that does": (
        lambda: convert(network(), {"*": HOSVD(), "zzz": HOSVD()}),
        r"names of the model's modules \(stem, bn, act, .*\), got 'zzz', which matches none",
    ),
    "a pattern for a model that is one layer": (
        lambda: convert(nn.Linear(3, 3), {"fc": HOSVD()}),
        r"names of the model's modules \('' alone\), got 'fc', which matches none",
    ),
    "a pattern that matches nothing where nothing is compressed": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), {"1": HOSVD()}),
        r"nothing to compress .*; expected patterns of names of the model's modules \(0\), got '1', which matches none",
    ),
    "a mapping of no pattern": (
        lambda: convert(network(), {}),
        r"codec=\.\.\.\): expected a mapping of one name pattern or more to codec configs, got \{\}",
    ),
    "a plan by a pattern that matches nothing": (
        lambda: plan(network(), BATCH, {"blocks.*": HOSVD()}),
        r"got 'blocks\.\*', which matches none",
    ),
    "twice": (
        lambda: convert(convert(network(), HOSVD()), HOSVD()),
        r"the model is converted already \(at 'stem'\); call tuckprop\.revert first",
    ),
    "a plan for another model": (
        lambda: convert(network(Transformer), decide(network(), HOSVD())),
        r"the plan has a Conv2d at 'stem', the model has nothing",
    ),
    "a plan for other layers": (
        lambda: convert(nn.ModuleDict({"0": nn.Flatten()}), decide(nn.Sequential(nn.Conv2d(3, 3, 3)), HOSVD())),
        r"the plan has a Conv2d at '0', the model has a Flatten",
    ),
    "a plan with a codec that does not serve the layer": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), Plan((SitePlan("0", "Linear", GradientFilter()),))),
        r"the plan has GradientFilter\(patch=2\) at '0': Gradient Filter is defined for Conv2d only",
    ),
    "a plan and other arguments": (
        lambda: convert(network(), decide(network(), HOSVD()), last=2),
        r"expected a plan alone, got last",
    ),
    "a plan on a converted model": (
        lambda: convert(convert(network(), HOSVD()), decide(network(), HOSVD())),
        r"converted already",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(TuckpropError, match=message) as raised:
        call()
    assert isinstance(raised.value, ConfigError)
    assert isinstance(raised.value, ValueError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("by", ["last", "frozen"])
def test_a_model_that_is_refused_is_left_as_it_was(by: str) -> None:
    model = network()
    before, flags = kinds(model), [p.requires_grad for p in model.parameters()]
    good = decide(model, HOSVD(), last=2)
    wrong = HOSVD() if by == "last" else Plan(good.sites, frozen=(*good.frozen, "absent"))
    with pytest.raises(ConfigError):
        convert(model, wrong, last=9 if by == "last" else None)
    assert kinds(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
