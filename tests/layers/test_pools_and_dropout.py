"""Pools and dropout: PyTorch's output and gradients bit for bit, with a fraction of the bytes held."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tuckprop import Dense
from tuckprop.layers import Site, Twin, find_twin
from tuckprop.layers._twin import become_twin

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MaxPool1d": (lambda: nn.MaxPool1d(3, 2, 1), (4, 6, 33)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (4, 6, 17, 15)),
    "MaxPool2d, dilated": (lambda: nn.MaxPool2d(3, 1, 1, dilation=2), (4, 6, 17, 15)),
    "MaxPool2d, ceiling": (lambda: nn.MaxPool2d((2, 3), (3, 2), ceil_mode=True), (4, 6, 17, 15)),
    "MaxPool2d, unbatched": (lambda: nn.MaxPool2d(2), (6, 17, 15)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), (2, 3, 8, 9, 7)),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, 1), (4, 6, 33)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), (4, 6, 17, 15)),
    "AvgPool2d, real count": (lambda: nn.AvgPool2d(3, 2, 1, True, False), (4, 6, 17, 15)),
    "AvgPool2d, divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (4, 6, 17, 15)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (2, 3, 8, 9, 7)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(5), (4, 6, 33)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), (4, 6, 17, 15)),
    "AdaptiveAvgPool2d, uneven": (lambda: nn.AdaptiveAvgPool2d((4, None)), (4, 6, 17, 15)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (2, 3, 8, 9, 7)),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(5), (4, 6, 33)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(3), (4, 6, 17, 15)),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), (2, 3, 8, 9, 7)),
    "Dropout": (lambda: nn.Dropout(0.3), (4, 6, 17, 15)),
    "Dropout, all": (lambda: nn.Dropout(1.0), (4, 6, 17)),
    "Dropout, none": (lambda: nn.Dropout(0.0), (4, 6, 17)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.3), (4, 6, 17, 15)),
}
each_case = pytest.mark.parametrize("name", CASES)


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    build, shape = CASES[name]
    module = build()
    twin = copy.deepcopy(module)
    kind = find_twin(twin, Dense())
    assert kind is not None, f"{name} has no twin"
    become_twin(twin, kind, Site(name))
    generator = torch.Generator().manual_seed(0)
    # Few values, so that windows have ties.
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    return module, twin, x


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(7)
    y = module(leaf)
    torch.manual_seed(8)
    y.backward(torch.randn_like(y))
    assert leaf.grad is not None
    return y.detach(), leaf.grad


def held_bytes(module: nn.Module, x: Tensor) -> int:
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.detach().clone().requires_grad_())
    del y
    return sum(held.values())


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_pytorchs(name: str, dtype: torch.dtype) -> None:
    if name == "AvgPool3d" and dtype == torch.bfloat16:
        pytest.skip("PyTorch has no such kernel on a CPU")
    module, twin, x = make(name, dtype)
    for expected, actual in zip(run(module, x), run(twin, x), strict=True):
        assert torch.equal(actual, expected)


@each_case
def test_channels_last_and_strided_inputs(name: str) -> None:
    module, twin, x = make(name, torch.float32)
    examples = [x.transpose(-1, -2).contiguous().transpose(-1, -2)]
    if x.dim() == 4:
        examples.append(x.contiguous(memory_format=torch.channels_last))
    for example in examples:
        for expected, actual in zip(run(module, example), run(twin, example), strict=True):
            assert torch.equal(actual, expected)


@each_case
def test_no_more_is_held_and_mostly_far_less(name: str) -> None:
    module, twin, x = make(name, torch.float32)
    plain, kept = held_bytes(module, x), held_bytes(twin, x)
    assert kept <= plain
    if "Pool" in name:
        # A byte an output says where in its window the maximum was; adaptive windows need four, averages nothing.
        assert kept <= (4 if "Adaptive" in name else 1) * run(module, x)[0].numel()


@each_case
def test_copies_and_eval_mode(name: str) -> None:
    module, twin, x = make(name)
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert isinstance(other, Twin)
        assert torch.equal(run(other, x)[1], run(module, x)[1])
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), module.eval()(x))


def test_indices_and_large_windows_fall_back_to_the_plain_op() -> None:
    pool: Any = nn.MaxPool2d(2, return_indices=True)
    twin = copy.deepcopy(pool)
    kind = find_twin(twin, Dense())
    if kind is not None and kind.refusal(twin) is None:
        become_twin(twin, kind, Site("pool"))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for expected, actual in zip(pool(x), twin(x), strict=True):
        assert torch.equal(actual, expected)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
)
def test_max_pooling_over_random_geometry(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceiling: bool,
) -> None:
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    reach = zip(shape[2:], padding, kernel, dilation, strict=True)
    assume(all(size + 2 * p > d * (k - 1) for size, p, k, d in reach))
    module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceiling)
    twin = copy.deepcopy(module)
    kind = find_twin(twin, Dense())
    assert kind is not None
    become_twin(twin, kind, Site("pool"))
    x = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).double()
    for expected, actual in zip(run(module, x), run(twin, x), strict=True):
        assert torch.equal(actual, expected)
