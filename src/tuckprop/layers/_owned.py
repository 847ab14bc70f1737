"""Whether the memory of the gradient that flows into a backward may take the gradient that flows out.

PyTorch's own derivatives of elementwise functions write to new memory. Where nobody else holds the incoming gradient,
its memory serves again: one buffer of the activation's size less, and no fresh pages from the operating system.
Nobody else holds it if Python's object, PyTorch's tensor and the memory have no more references each than those of a
gradient that is known to be alone. Any other holder (a residual connection, a hook that keeps it, the caller, a view)
raises one of the three. PyTorch's engine asks the same of a gradient before it adds another to it in place.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class References(NamedTuple):
    """Numbers of references to one tensor.

    Attributes:
        python: To the Python object.
        tensor: To the tensor behind it, by PyTorch.
        memory: To the memory, by tensors.
    """

    python: int
    tensor: int
    memory: int


def count_references(tensors: tuple[Tensor | None, ...]) -> References | None:
    """Return the references to the first of `tensors`, or None where they can't be counted.

    The caller's own references count too: compare results of callers that got `tensors` as their `*arguments` alone.
    """
    first = tensors[0]
    if type(first) is not Tensor or first.layout != torch.strided or first.is_meta:
        return None
    memory = torch._C._storage_Use_Count(first.untyped_storage()._cdata)
    return References(sys.getrefcount(first), first._use_count(), memory)  # type: ignore[attr-defined]


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noted: list[References | None]) -> Tensor:
        ctx.noted = noted
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.noted.append(count_references(grads))
        return grads[0].clone(), None


def _leaf() -> Tensor:
    return torch.zeros(2, device="cpu", requires_grad=True)


def _probe(use: Callable[[Callable[[], Tensor]], Tensor]) -> References | None:
    """Return the references to the gradient of a tensor that `use` asks for and uses."""
    noted: list[References | None] = []
    use(lambda: _Probe.apply(_leaf(), noted)).sum().backward()
    return noted[0]


def _alone(make: Callable[[], Tensor]) -> Tensor:
    return make().neg()


def _shared(make: Callable[[], Tensor]) -> Tensor:
    other = _leaf().clone()  # The older node waits with the same gradient.
    return (make() + other).neg()


def _hooked(make: Callable[[], Tensor]) -> Tensor:
    held: list[Tensor] = []
    y = make()
    y.register_hook(held.append)
    return y.neg()


def _viewed(make: Callable[[], Tensor]) -> Tensor:
    held: list[Tensor] = []
    y = make()
    y.register_hook(lambda grad: held.append(grad.view(-1)))
    return y.neg()


def _calibrate() -> References | None:
    """Return the references to a gradient that nobody else holds; None where a holder would not show in them."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            alone = _probe(_alone)
            held = [_probe(use) for use in (_shared, _hooked, _viewed)]
    except (AttributeError, RuntimeError):  # Not every version of PyTorch counts.
        return None
    if alone is None or any(other is None or _at_most(other, alone) for other in held):
        return None
    return alone


def _at_most(one: References, other: References) -> bool:
    return one.python <= other.python and one.tensor <= other.tensor and one.memory <= other.memory


_ALONE = _calibrate()


def is_owned(references: References | None) -> bool:
    """Say whether a gradient with these references has no holder but the backward that asks."""
    return _ALONE is not None and references is not None and _at_most(references, _ALONE)
