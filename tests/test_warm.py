"""What tracked codecs carry from step to step goes through a checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tuckprop import ASI, HOSVD, Subspace, WarmState, convert, plan
from tuckprop.codecs import Codec
from tuckprop.errors import ConfigError
from tuckprop.layers import Twin


class Counter:
    """A tracker with something to remember."""

    def __init__(self, basis: torch.Tensor) -> None:
        self.basis = basis

    def state(self) -> dict[str, Any]:
        return {"basis": self.basis}

    def restore(self, state: dict[str, Any]) -> None:
        self.basis = state["basis"]

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.basis = function(self.basis)


def converted(values: list[float]) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.ReLU())
    convert(model, HOSVD(), pointwise=False)
    for module, value in zip(model, values, strict=False):
        assert isinstance(module, Twin)
        module._site.tracker = Counter(torch.full((3,), value))  # type: ignore[assignment]
    return model


def test_every_site_gets_its_own_state_back() -> None:
    target = converted([0.0, 0.0])
    WarmState(target).load_state_dict(WarmState(converted([1.0, 2.0])).state_dict())
    assert [module._site.tracker.basis[0].item() for module in list(target)[:2]] == [1.0, 2.0]


def test_sites_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracked sites \['0', '1'\].*got \['0'\]; convert the model first"):
        WarmState(converted([0.0, 0.0])).load_state_dict(WarmState(converted([1.0])).state_dict())


def test_plain_models_and_codecs_without_memory_have_none() -> None:
    for model in (nn.Conv2d(1, 1, 1), convert(nn.Sequential(nn.Conv2d(1, 1, 1)), HOSVD())):
        assert WarmState(model).state_dict() == {"trackers": {}, "allowances": {}}


def trained(codec: Codec) -> nn.Module:
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), codec)
    model(torch.randn(8, 3, 16, 16)).sum().backward()
    return model


@pytest.mark.parametrize(
    ("made", "given"), [(Subspace(), ASI((2, 2, 2, 2))), (ASI((2, 2, 2, 2)), Subspace())], ids=repr
)
def test_the_state_of_another_codec_is_refused(made: Codec, given: Codec) -> None:
    name = type(made).__name__
    with pytest.raises(ConfigError, match=rf"expected the state of site '[01]' \({name}.*\), got another .*; convert"):
        WarmState(trained(made)).load_state_dict(WarmState(trained(given)).state_dict())


@pytest.mark.parametrize(
    ("state", "got"),
    [({}, r"the entries \[\]"), ({"0.weight": 1}, r"the entries \['0.weight'\]"), (None, "NoneType"), ("x", "str")],
)
def test_what_is_no_warm_state_is_refused(state: Any, got: str) -> None:
    expected = r"^WarmState\.load_state_dict\(state=\.\.\.\): expected the entries trackers and allowances, got "
    with pytest.raises(ConfigError, match=f"{expected}{got}; pass what the state_dict"):
        WarmState(nn.Conv2d(1, 1, 1)).load_state_dict(state)


def test_a_budget_where_there_was_none_is_refused() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.randn(8, 3, 16, 16)
    state = WarmState(trained(HOSVD())).state_dict()
    with pytest.raises(ConfigError, match=r"expected budgets from the sites \['0'\] on.*got \[\]; convert"):
        WarmState(convert(model, plan(model, x, HOSVD(), budget="20KB"))).load_state_dict(state)


def test_what_is_no_model_is_refused() -> None:
    model: Any = "x"
    with pytest.raises(ConfigError, match=r"^WarmState\(model=\.\.\.\): expected a torch\.nn\.Module, got str$"):
        WarmState(model)
