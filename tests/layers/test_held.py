"""A tensor that a plain operation keeps for itself is not packed besides; every other one is."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import decaying
from tuckprop import HOSVD, convert, measure
from tuckprop.codecs import DensePacked
from tuckprop.layers import observe

Function = Callable[[Tensor], Tensor]

KEEP_THEIR_OUTPUT: dict[str, Function] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x * 1, inplace=True),
    "leaky relu in place": lambda x: F.leaky_relu(x * 1, inplace=True),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": lambda x: (x / 9).exp(),
    "softmax": lambda x: x.softmax(1),
    "a view": lambda x: F.relu(x).flatten(2).unflatten(2, x.shape[2:]),
}
DO_NOT: dict[str, Function] = {
    "nothing": lambda x: x,
    "sum": lambda x: x + 1,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "product": lambda x: x * x,
    "a sum with what is kept": lambda x: F.relu(x) + x,
}


class Before(nn.Module):
    """A convolution behind a function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(6, 6, 1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [b, 6, h, w] to [b, 4, h, w]."""
        return self.second(self.function(self.first(x)))  # type: ignore[no-any-return]


def run(function: Function) -> tuple[bool, int, int]:
    """Return whether the second convolution's input was packed, and the bytes held, converted and plain."""
    torch.manual_seed(0)
    x = decaying((8, 6, 16, 16), seed=0, dtype=torch.float32)
    plain = measure(Before(function), lambda m: m(x).sum()).held_bytes
    model = convert(Before(function), HOSVD(0.7), pointwise=False)
    packed: list[bool] = []
    with observe(lambda event: packed.append(not isinstance(event.kept, DensePacked))):
        model(x).sum().backward()
    held = measure(model, lambda m: m(x).sum()).held_bytes
    return packed[1], held, plain


@pytest.mark.parametrize("name", KEEP_THEIR_OUTPUT)
def test_what_is_held_anyway_is_shared(name: str) -> None:
    packed, held, plain = run(KEEP_THEIR_OUTPUT[name])
    assert not packed
    # The first layer's form comes on top of the batch, which is the caller's and not counted.
    assert held < plain + 6 * 8 * 16 * 16 * 4 / 2


@pytest.mark.parametrize("name", DO_NOT)
def test_what_is_not_is_packed(name: str) -> None:
    packed, _, _ = run(DO_NOT[name])
    assert packed


def test_a_frozen_function_holds_nothing() -> None:
    model = convert(Before(F.relu), HOSVD(0.7), last=1, pointwise=False)
    packed: list[bool] = []
    with observe(lambda event: packed.append(not isinstance(event.kept, DensePacked))):
        model(decaying((8, 6, 16, 16), seed=0, dtype=torch.float32)).sum().backward()
    assert packed == [True]
