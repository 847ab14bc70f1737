"""What a norm's twin owes the plain norm, and the means to check it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tuckprop.codecs import Codec, Packed
from tuckprop.layers import Site, Twin, find_twin, observe
from tuckprop.layers._twin import become_twin


def trained(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give weights and statistics other values than a fresh module's."""
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = (0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)).to(dtype)
    return module


def twin_of(module: nn.Module, codec: Codec) -> nn.Module:
    """Return a converted copy."""
    twin = copy.deepcopy(module)
    kind = find_twin(twin, codec)
    assert kind is not None
    become_twin(twin, kind, Site("norm", codec))
    assert isinstance(twin, Twin)
    return twin


@dataclass
class Run:
    """One forward and backward.

    Attributes:
        module: The norm.
        x: Its input, any layout.
        autocast: Whether to run the forward under bfloat16 autocast.
    """

    module: nn.Module
    x: Tensor
    autocast: bool = False
    y: Tensor = field(init=False)
    grad: Tensor = field(init=False)
    gradients: dict[str, Tensor] = field(init=False)
    kept: list[Packed] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        x = self.x.detach().requires_grad_()
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast),
            observe(lambda event: self.kept.append(event.kept)),
        ):
            y = self.module(x)
        generator = torch.Generator().manual_seed(5)
        drawn = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        self.grad = torch.empty_like(y).copy_(drawn)
        self.module.zero_grad()
        y.backward(self.grad)
        self.y = y.detach()
        found = {"input": x.grad} | {name: p.grad for name, p in self.module.named_parameters()}
        self.gradients = {name: gradient for name, gradient in found.items() if gradient is not None}


def check_forward(plain: Run, converted: Run) -> None:
    """Check that output, its layout and every buffer are the plain ones, bit for bit, or to rounding in float32."""
    assert_close(converted.y, plain.y, **_rounding(plain.y.dtype))
    assert converted.y.dtype == plain.y.dtype
    assert converted.y.stride() == plain.y.stride()
    for (name, buffer), (_, other) in zip(plain.module.named_buffers(), converted.module.named_buffers(), strict=True):
        assert_close(buffer, other, msg=name, **_rounding(buffer.dtype))


def _rounding(dtype: torch.dtype) -> dict[str, float]:
    """Return tolerances: the compiled kernels serve float32 and sum in an order of their own."""
    return {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0}


def held_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward saves for backward, each storage once, without parameters and buffers."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.detach().requires_grad_())
    del y
    return sum(nbytes for pointer, nbytes in held.items() if pointer not in own)


class _Buffers(TorchDispatchMode):
    """Counts how many buffers of a size or more, made within the context, are alive at one time.

    Attributes:
        most: The largest count so far.
    """

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes
        self.most = 0
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage.nbytes() >= self.nbytes:
                    self._made[storage._cdata] = StorageWeakRef(storage)
        self._made = {key: ref for key, ref in self._made.items() if not ref.expired()}
        self.most = max(self.most, len(self._made))
        return result


@contextmanager
def count_buffers(nbytes: int) -> Iterator[_Buffers]:
    """Count buffers of at least `nbytes` that are alive at one time, made within the context."""
    with _Buffers(nbytes) as counted:
        yield counted
