"""What calls of the library's compiled kernels cost: arithmetic as they do it, and the tensors that they pass over.

A tensor counts once as read or written, one that is changed in place twice. Gram matrices are computed by half;
convolutions by Winograd's algorithm multiply 16 times a tile of 2 x 2 outputs. Passes over elements, norms and
eigenproblems count no FLOPs, as in step_cost.py.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tuckprop import native


@dataclass(frozen=True)
class KernelCall:
    """One call of one kernel.

    Attributes:
        name: In `tuckprop.native`.
        flops: Of products; a multiply and an add are two.
        bytes: Read and written.
    """

    name: str
    flops: int
    bytes: int


def _gram(stack: Tensor) -> int:
    samples, size, positions = stack.shape
    return samples * positions * size * (size + 1)


def _product(stack: Tensor, matrix: Tensor, **_: Any) -> int:
    return 2 * stack.numel() * matrix.shape[1]


def _cross(left: Tensor, right: Tensor) -> int:
    return 2 * left.numel() * right.shape[1]


def _winograd(weight: Tensor, positions: Tensor) -> int:
    tiles = len(positions) * prod(-(-size // 2) for size in positions.shape[2:])
    return 2 * 16 * tiles * prod(weight.shape[:2])


def _depthwise(positions: Tensor, window: Any) -> int:
    return 2 * positions.numel() * prod(window[0])


# They look at no element.
_QUESTIONS = {"available", "reads", "serves"}

_FLOPS: dict[str, Callable[..., int]] = {
    "gram": _gram,
    "product": _product,
    "measured_product": _product,
    "chained_products": lambda steps, **_: 2 * steps.multiplications,
    "cross": _cross,
    "batch_norm_factored": lambda grad, factor, **_: 2 * grad.numel() * factor.shape[1],
    "winograd": lambda weight, y, **_: _winograd(weight, y),
    "winograd_input": lambda weight, out, **_: _winograd(weight, out),
    "winograd_weight": lambda grad, out, **_: _winograd(out, grad),
    "depthwise": lambda y, window, **_: _depthwise(y, window),
    "depthwise_input": lambda grad, window, **_: _depthwise(grad, window),
    "depthwise_weight": lambda grad, window, **_: _depthwise(grad, window),
}


@contextmanager
def counted_kernels() -> Iterator[list[KernelCall]]:
    """Yield a list that takes in every call of a kernel while the context is open."""
    calls: list[KernelCall] = []
    with ExitStack() as stack:
        for name in native.__all__:
            function = getattr(native, name)
            if inspect.isfunction(function) and name not in _QUESTIONS:
                stack.enter_context(patch.object(native, name, _counted(name, function, calls)))
        yield calls


def _counted(name: str, function: Callable[..., Any], calls: list[KernelCall]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result is not None or function.__annotations__["return"] is None:
            given = signature.bind(*args, **kwargs).arguments
            flops = _FLOPS[name](**given) if name in _FLOPS else 0
            calls.append(KernelCall(name, flops, _moved([given, result])))
        return result

    return call


def _moved(values: Any) -> int:
    """Return the bytes of all tensors; of one that is given twice, as input and as output, twice."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))
