"""What the tests of `convert` share: networks, their gradients, and which of their layers are converted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.cases import decaying
from tests.networks import ConvNet, Transformer
from tuckprop.layers import Twin

TIGHT = {"rtol": 1e-10, "atol": 1e-10}

BATCH = decaying((8, 3, 16, 16), seed=1, decay=0.8)
TARGET = torch.arange(8) % 5


def network(kind: Callable[[], nn.Module] = ConvNet) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def loss_of(model: nn.Module, x: Tensor = BATCH) -> Tensor:
    return nn.functional.cross_entropy(model(x), TARGET[: len(x)])


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def twins(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Twin) and module.compresses]


both_networks = pytest.mark.parametrize("kind", [ConvNet, Transformer])
