"""What tracked codecs carry from step to step goes through a checkpoint."""

from typing import Any

import pytest
import torch
from torch import nn

from tuckprop import HOSVD, convert
from tuckprop.layers import Twin
from tuckprop.train.warm import restore_warm_state, warm_state


class Counter:
    """A tracker with something to remember."""

    def __init__(self, basis: torch.Tensor) -> None:
        self.basis = basis

    def state(self) -> dict[str, Any]:
        return {"basis": self.basis}

    def restore(self, state: dict[str, Any]) -> None:
        self.basis = state["basis"]


def converted(values: list[float]) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.ReLU())
    convert(model, HOSVD(), pointwise=False)
    for module, value in zip(model, values, strict=False):
        assert isinstance(module, Twin)
        module._site.tracker = Counter(torch.full((3,), value))  # type: ignore[assignment]
    return model


def test_every_site_gets_its_own_state_back() -> None:
    target = converted([0.0, 0.0])
    restore_warm_state(target, warm_state(converted([1.0, 2.0])))
    assert [module._site.tracker.basis[0].item() for module in list(target)[:2]] == [1.0, 2.0]


def test_sites_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['0', '1'\].*\['0'\]"):
        restore_warm_state(converted([0.0, 0.0]), warm_state(converted([1.0])))


def test_plain_models_and_codecs_without_memory_have_none() -> None:
    for model in (nn.Conv2d(1, 1, 1), convert(nn.Sequential(nn.Conv2d(1, 1, 1)), HOSVD())):
        assert warm_state(model) == {"trackers": {}, "allowance": None}
