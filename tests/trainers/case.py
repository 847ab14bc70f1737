"""What every trainer trains here: a small converted network on noisy pictures, and a loop by hand to compare with."""

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import tuckprop
from tuckprop.codecs import Codec

each_codec = pytest.mark.parametrize(
    "codec", [tuckprop.HOSVD(0.8), tuckprop.Subspace(0.8), tuckprop.ASI()], ids=lambda codec: codec.label
)
BATCH, RATE = 8, 0.05
PICTURES = F.interpolate(torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), (16, 16))


def network(codec: Codec | None) -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    return model if codec is None else tuckprop.convert(model, codec)  # type: ignore[return-value]


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Noisy copies of four pictures."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        label = number % 4
        noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(number))
        return PICTURES[label] + 0.3 * noise, torch.tensor(label)


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    pictures = Pictures(steps * BATCH)
    return [
        tuple(torch.stack(part) for part in zip(*(pictures[n] for n in range(at, at + BATCH)), strict=True))  # type: ignore[misc]
        for at in range(0, len(pictures), BATCH)
    ]


def by_hand(model: nn.Module, given: Iterable[tuple[Tensor, Tensor]], accumulate: int = 1) -> dict[str, Tensor]:
    """Train by SGD with momentum; return the state dict."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    for number, (images, labels) in enumerate(given, start=1):
        (F.cross_entropy(model(images), labels) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
