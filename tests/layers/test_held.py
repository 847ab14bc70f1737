"""A tensor that a plain operation or the caller holds is not packed besides; every other one is."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import decaying
from tests.networks import ConvNet, Transformer
from tuckprop import HOSVD, SVD, Dense, Subspace, convert, measure, revert
from tuckprop.codecs import Codec, DensePacked
from tuckprop.layers import _held, observe

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
    assert held == plain


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


class Batch(nn.Module):
    """A convolution that reads a part of what the caller passed."""

    def __init__(self, read: Function) -> None:
        super().__init__()
        self.read = read
        self.layer = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Shape [b, 6, h, w] to [b, 4, h, w]."""
        return scale * self.layer(self.read(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("read", "shared"),
    [(lambda x: x, True), (lambda x: x[:4], True), (lambda x: x + 1, False), (lambda x: x.clone(), False)],
    ids=["itself", "a view", "a sum", "a copy"],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_what_the_caller_holds_is_shared(read: Function, shared: bool, by_name: bool) -> None:
    model = convert(Batch(read), HOSVD(0.7))
    x = decaying((8, 6, 16, 16), seed=0, dtype=torch.float32)
    packed: list[bool] = []
    counts: list[int] = []
    with observe(
        lambda event: (packed.append(not isinstance(event.kept, DensePacked)), counts.append(event.paper_count))
    ):
        (model(x=x) if by_name else model(x)).sum().backward()
    assert packed == [not shared]
    # The paper counts the first layer's form in any case.
    assert counts == [HOSVD(0.7).compress(read(x)).paper_count()]
    plain = Batch(read)
    plain.load_state_dict(model.state_dict())
    plain(x).sum().backward()
    if shared:
        torch.testing.assert_close(model.layer.weight.grad, plain.layer.weight.grad)


def test_an_activation_of_a_larger_model_is_not_the_callers() -> None:
    inner = convert(Batch(lambda x: x), HOSVD(0.7))
    outer = nn.Sequential(nn.Conv2d(6, 6, 1), inner)
    packed: list[bool] = []
    with observe(lambda event: packed.append(not isinstance(event.kept, DensePacked))):
        outer(decaying((8, 6, 16, 16), seed=0, dtype=torch.float32)).sum().backward()
    assert packed == [True]


def test_nothing_is_noted_beyond_the_life_of_a_batch_or_after_revert() -> None:
    model = convert(Batch(lambda x: x), HOSVD(0.7))
    x = decaying((8, 6, 16, 16), seed=0, dtype=torch.float32)
    before = len(_held._given)
    model(x)
    assert len(_held._given) == before + 1
    copy.deepcopy(model)(x.clone())
    del x
    assert len(_held._given) == before
    revert(model)
    assert not model._forward_pre_hooks
    assert not model._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize("codec", [HOSVD(0.8), HOSVD(0.95), SVD(0.95), Subspace(0.95), Dense()], ids=repr)
@pytest.mark.parametrize("build", [ConvNet, Transformer])
def test_never_more_is_held_than_by_the_plain_model(
    build: Callable[[], nn.Module], codec: Codec, pointwise: bool
) -> None:
    x = torch.randn(8, 3, 32, 32)  # Noise: nothing that compresses well.
    plain = measure(build(), lambda m: m(x).sum()).held_bytes
    converted = measure(convert(build(), codec, pointwise=pointwise), lambda m: m(x).sum()).held_bytes
    assert converted <= plain
