"""What the tests of recomputed blocks share: networks of such blocks, and what a step leaves."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import tuckprop
from tuckprop.layers import PackEvent, observe


class Residual(nn.Module):
    """A block with all that makes a second run different: batch statistics, dropout, a buffer that counts."""

    def __init__(self, width: int, drop: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)
        self.second = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.drop(self.act(self.norm(self.first(x)))))


def network(blocks: int = 3, width: int = 4, drop: float = 0.3) -> nn.Sequential:
    body = nn.Sequential(*(Residual(width, drop) for _ in range(blocks)))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), body, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def step(model: nn.Module, x: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Return all that a training step leaves: output, gradients, buffers, random state."""
    model.zero_grad()
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    left = {"y": y.detach(), "x": x.grad, "random": torch.get_rng_state()}
    left |= {name: parameter.grad for name, parameter in model.named_parameters()}
    left |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {name: torch.zeros(()) if value is None else value for name, value in left.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


class Scaled(nn.Module):
    """A block of two layers with whatever else a test puts into its forward."""

    def __init__(self, body: Callable[..., Any], size: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.register_buffer("scale", torch.ones(()))
        self.body = body

    def hidden(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, *args, **kwargs)


def pair(body: Callable[..., Any]) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """Return a network with such a block, plain and computed again without loss, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Scaled(body), nn.Linear(4, 2)).double()
    ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense(), blocks="1")
    return model, ours, torch.randn(3, 4, dtype=torch.float64)


@contextmanager
def observed() -> Iterator[dict[str, PackEvent]]:
    """Collect what each site outside of recomputed blocks keeps in a forward."""
    kept: dict[str, PackEvent] = {}

    def note(event: PackEvent) -> None:
        if not re.fullmatch(r"1\.\d+\..*", event.site.name):
            kept[event.site.name] = event

    with observe(note):
        yield kept
