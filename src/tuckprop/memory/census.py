"""Which bytes a forward holds for backward: unique storages, by the module that kept them first."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuckprop.errors import ConfigError
from tuckprop.layers import trackers


class _Births(TorchDispatchMode):
    """Notes the storages that operations make, so that what was there before (parameters, inputs) is told apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.born: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.born:
                    # The weak reference also keeps the address from being given out again.
                    self.born[storage._cdata] = StorageWeakRef(storage)
        return out


@dataclass
class Census:
    """Bytes that were saved for backward while the census was open.

    Attributes:
        naive_bytes: Sum over saved tensors, shared storages counted each time, as some tools report it.
    """

    naive_bytes: int = 0
    _saved: dict[int, tuple[StorageWeakRef, str, int]] = field(default_factory=dict)

    def by_module(self) -> dict[str, int]:
        """Return bytes still held, by the dotted name of the innermost module that kept each storage first."""
        held: dict[str, int] = {}
        for reference, name, nbytes in self._saved.values():
            if not reference.expired():
                held[name] = held.get(name, 0) + nbytes
        return held

    @property
    def held_bytes(self) -> int:
        """Bytes still held in all, each storage once."""
        return sum(self.by_module().values())


def _carried(model: nn.Module) -> dict[int, StorageWeakRef]:
    """Return the storages that converted modules carry from step to step."""
    found: dict[int, StorageWeakRef] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = StorageWeakRef(storage)
        return tensor

    for tracker in trackers(model):
        tracker.apply(note)
    return found


@contextmanager
def census(model: nn.Module) -> Iterator[Census]:
    """Count what forwards inside the context save for backward.

    Parameters, buffers and everything else that was allocated before, the input batch above all, are left out; but what
    converted modules carry from step to step, such as bases, counts where it is saved.

    Args:
        model: Names the modules; calls of other modules are counted too, under "".

    Yields:
        The census; read it while the graph is alive.
    """
    names = {module: name for name, module in model.named_modules()}
    stack: list[str] = [""]
    result = Census()
    births, carried = _Births(), _carried(model)

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(module, stack[-1]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    def pack(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        known = births.born.get(storage._cdata) or carried.get(storage._cdata)
        if known is not None and not known.expired():
            result.naive_bytes += tensor.numel() * tensor.element_size()
            result._saved.setdefault(storage._cdata, (StorageWeakRef(storage), stack[-1], storage.nbytes()))
        # A node that keeps its own output would keep itself alive through a hook that returns it undetached. What no
        # node made is returned as it is: layers that read one tensor share its packed form for as long as that lives.
        return tensor if tensor.grad_fn is None else tensor.detach()

    with ExitStack() as context:
        enter_hook = nn.modules.module.register_module_forward_pre_hook(enter)
        context.callback(enter_hook.remove)
        # Always called, so that a forward that fails does not leave the stack uneven for the next.
        leave_hook = nn.modules.module.register_module_forward_hook(leave, always_call=True)
        context.callback(leave_hook.remove)
        context.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))
        context.enter_context(births)
        yield result


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put gradients, buffers, training flags and the random state back, as they were, on leaving.

    Raises:
        ConfigError: A lazy module of the model has no shape yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(f"expected a model that has been run once, got one whose {name!r} has no shape yet")
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [
        (m, name, b, b.detach().clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    flags = [(m, m.training) for m in model.modules()]
    devices = {p.device for p in model.parameters()} - {torch.device("cpu")}
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(list(devices), device_type=next(iter(devices)).type if devices else "cuda"):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer  # A forward may have put another tensor in its place.
                buffer.copy_(value)
        for module, flag in flags:
            module.training = flag
