"""What tracked codecs carry from step to step goes through a checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tuckprop import HOSVD, WarmState, convert
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
    with pytest.raises(ValueError, match=r"\['0', '1'\].*\['0'\]"):
        WarmState(converted([0.0, 0.0])).load_state_dict(WarmState(converted([1.0])).state_dict())


def test_plain_models_and_codecs_without_memory_have_none() -> None:
    for model in (nn.Conv2d(1, 1, 1), convert(nn.Sequential(nn.Conv2d(1, 1, 1)), HOSVD())):
        assert WarmState(model).state_dict() == {"trackers": {}, "allowances": {}}
