"""Forward and backward hold the tensors that come in and go out, what is kept, and a few slabs: no more."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.layers.pointwise import twin
from tuckprop.layers import pool
from tuckprop.linalg import bits

SLAB = 1 << 10
SHAPE = (4, 16, 32, 32)

LAYERS: list[nn.Module] = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.Hardsigmoid(inplace=True), nn.Softshrink(),
    nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.Sigmoid(), nn.ELU(inplace=True), nn.Dropout(0.3),
    nn.Dropout(0.3, inplace=True), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(7), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1),
]  # fmt: skip


class Peak(TorchDispatchMode):
    """Sums the storages that operations make and that are alive after any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                storage = t.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(nbytes for _, nbytes in self._alive.values()))
        return out


@pytest.mark.parametrize("module", LAYERS, ids=repr)
def test_peak(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_CPU_SLAB", SLAB)
    monkeypatch.setattr(pool, "_CPU_OUTPUTS", SLAB)
    converted = twin(module)
    in_place = bool(getattr(module, "inplace", False))
    x = torch.randn(SHAPE, requires_grad=True)
    given = x * 1 if in_place else x
    converted(x * 1).sum().backward()  # Codes are fitted and tables made once.
    few_slabs = 20 * SLAB + 70_000  # The second for the tables of the smooth codes.
    with Peak() as forward:
        y = converted(given)
    kept = y.grad_fn.saved_tensors if y.grad_fn is not None else ()
    held = sum(t.nbytes for t in kept)
    noise = x.nbytes if isinstance(module, nn.Dropout) and in_place else 0  # PyTorch draws in full precision.
    positions = y.numel() if isinstance(module, nn.MaxPool2d) else 0  # A byte each, before they are packed.
    assert forward.bytes <= (0 if in_place else y.nbytes) + held + few_slabs + noise + positions
    grad = torch.randn_like(y)
    with Peak() as backward:
        torch.autograd.grad(y, given if not in_place else x, grad)
    # An average pool passes PyTorch a tensor of the input's shape that is never touched.
    stand_in = x.nbytes if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)) else 0
    multiplied = x.nbytes if in_place else 0  # By the `x * 1` before it.
    assert backward.bytes <= x.nbytes + few_slabs + stand_in + multiplied + positions
