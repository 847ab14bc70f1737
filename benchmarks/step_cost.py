"""What a training step costs apart from any machine: arithmetic and bytes moved, operation by operation.

FLOPs are those of matrix products, convolutions and attention (torch.utils.flop_counter; a multiply and an add are
two). Additions, activations, norms, QR and eigenvalue decompositions count as none.

Bytes are those of the tensors that each operation of ATen is given and returns: an input once as read, a result once as
written, what is changed in place as both. Views and uninitialised memory count as none, and so does the scratch memory
inside an operation. A result that stays in a cache until the next operation reads it counts like any other, and so does
what converted layers work through block by block, so that it stays there. The library's compiled kernels, which no mode
of PyTorch sees, count by kernel_cost.py: as what they compute, and the tensors that they are given and return.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from arms import Training
from kernel_cost import counted_kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

# These change their first argument without reading it.
_OVERWRITE = {"copy_", "zero_", "fill_", "uniform_", "normal_", "bernoulli_", "random_"}
# These return memory that nobody has written to.
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Operation:
    """One call of one operation.

    Attributes:
        name: As ATen has it.
        flops: Of matrix products, convolutions and attention.
        bytes: Read and written.
        dtype: Of the result.
    """

    name: str
    flops: int
    bytes: int
    dtype: torch.dtype


class _Log(TorchDispatchMode):
    """Notes every operation; the counter is open around it and sees what it passes on."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        out = func(*args, **kwargs)
        flops = self.counter.get_total_flops() - before
        moved = _moved(func, args, kwargs, out)
        if flops or moved:
            dtype = next((t.dtype for t in _tensors(out)), torch.float32)
            self.operations.append(Operation(func._schema.name, flops, moved, dtype))
        return out


def step_operations(training: Training, images: Tensor, labels: Tensor) -> list[Operation]:
    """Take one step, optimizer and all, and return its operations in order, then those of compiled kernels."""
    # The registered formula takes the backward of a grouped convolution for that of a full one.
    counter = FlopCounterMode(display=False, custom_mapping={aten.convolution_backward: _convolution_backward})
    with counter, _Log(counter) as log, counted_kernels() as kernels:
        training.step(images, labels)
    return log.operations + [Operation(f"tuckprop::{k.name}", k.flops, k.bytes, torch.float32) for k in kernels]


def _convolution_backward(
    grad: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    """Return the FLOPs: each of the input's and the weight's gradient takes what the forward does. Takes shapes."""
    _, _, mask = rest
    positions = prod((x if transposed else grad)[2:])
    return 2 * x[0] * positions * prod(weight) * (int(mask[0]) + int(mask[1]))


def _moved(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    name = func._schema.name.rpartition("::")[2]
    if func.is_view or name in _UNWRITTEN:
        return 0
    changed = _changed(func, args, kwargs)
    read = {id(t): t for t in _tensors((args, kwargs))}
    given = {t.untyped_storage()._cdata for t in read.values()}
    written = {id(t): t for t in (*changed, *_tensors(out))}
    if not changed and all(t.untyped_storage()._cdata in given for t in written.values()):
        return 0  # A view that its schema does not own up to, such as _unsafe_view; or no tensor comes back at all.
    for t in changed:
        if name in _OVERWRITE or not name.endswith("_"):  # The latter has it as out=, or as running statistics.
            read.pop(id(t), None)
    return sum(_bytes(t) for t in (*read.values(), *written.values()))


def _changed(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments that the operation writes to."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([given.get(name) for name in names])


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _bytes(t: Tensor) -> int:
    """Return the bytes of its elements; what is expanded counts once."""
    elements = prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or size == 0)
    return elements * t.element_size()
