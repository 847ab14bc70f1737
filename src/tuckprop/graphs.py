"""The two CUDA graphs of one kind of training step, forward and backward, and the memory that they read and write."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from tuckprop.codecs._ledger import Ledger, opened
from tuckprop.errors import UnsupportedError
from tuckprop.layers import trackers
from tuckprop.layers._held import NoteInputs
from tuckprop.linalg.lagged import Lagged

# Bases that lose so many times as much as they may are replaced at once.
_SEVERE = 1.25

# Arguments and results, besides tensors, that say all there is to know of them.
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


def is_constant(leaf: Any) -> bool:
    """Say whether an argument or a result that is no tensor is the same as long as it compares equal."""
    return isinstance(leaf, _CONSTANTS)


class Recorder:
    """Captures what functions queue, in memory of their own that graphs of one step share.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Call a function, whose work is captured instead of done, and return what does the work.

        Nothing is collected meanwhile, as that can call the device. Other threads may go on calling it, such as a data
        loader's that pins memory.
        """
        graph, stream = torch.cuda.CUDAGraph(), _stream(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        numbers, collecting = generator.clone_state(), gc.isenabled()
        torch.cuda.synchronize(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            gc.disable()
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
            except BaseException:
                # What a capture that ends well does at its end: memory and random numbers are those of steps again.
                generator.graphsafe_set_state(numbers)
                self._release()
                raise
            finally:
                if collecting:
                    gc.enable()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph.replay

    def _release(self) -> None:
        for names in (("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"), ("_cuda_releasePool",)):
            found = next((name for name in names if hasattr(torch._C, name)), None)
            if found is not None:
                with suppress(RuntimeError):
                    getattr(torch._C, found)(self._device.index, self._pool)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that captures use: libraries keep memory for each, so it is always the same."""
    return torch.cuda.Stream(device)


class Plain(nn.Module):
    """A model without hooks, and without what has taken the place of its forward.

    Args:
        model: The model.
        run: Its forward.
    """

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward."""
        return self._run(*args, **kwargs)


class Graphs:
    """Forward and backward of one kind of step.

    Args:
        plain: The model.
        leaves: Its arguments, flat.
        spec: How they were nested.
        recorder: Captures them.

    Raises:
        UnsupportedError: The model returns something that a replay cannot bring up to date.
    """

    def __init__(self, plain: Plain, leaves: list[Any], spec: Any, recorder: Recorder) -> None:
        self._plain, self._given, self._autocast = plain, spec, autocast_dtype()
        self._inputs = [_copy(leaf) for leaf in leaves]
        self._held = _own_bases(plain)
        # Their own tensors in the same memory: what accumulates a parameter's gradient belongs to the stream of a step.
        self._weights = {
            name: parameter.detach().requires_grad_()
            for name, parameter in plain.named_parameters()
            if parameter.requires_grad
        }
        needing = [t for t in self._inputs if isinstance(t, Tensor) and t.requires_grad]
        self._sources: list[Tensor] = [*needing, *self._weights.values()]
        self._made: list[Any] = []
        self._outputs: list[Any] = []
        self._ledger = Ledger()
        self._numbers: Tensor | None = None
        self._replay_forward = recorder.record(self._forward)
        self._differentiable = [isinstance(t, Tensor) and t.requires_grad for t in self._made]
        self._grads = [torch.zeros_like(t) for t in self._made if isinstance(t, Tensor) and t.requires_grad]
        # Outside of the graphs' memory, which the next forward overwrites.
        self._gradients: list[Tensor | None] = [torch.empty_like(source) for source in self._sources]
        self._replay_backward = recorder.record(self._backward)
        self._made = []
        self._limits = [entry.tracker.limits(entry.key) for entry in self._ledger.entries]
        self._sent: Lagged | None = None
        self._lost: list[float] = []
        self._missed: Counter[int] = Counter()
        self._waiting: weakref.ref[_Waiting] | None = None

    def _forward(self) -> None:
        args, kwargs = tree_unflatten(self._inputs, self._given)
        NoteInputs()(self._plain, args, kwargs)  # They are held whatever a layer keeps of them.
        ledger = Ledger()
        with opened(ledger), _autocast_to(self._autocast):
            made = functional_call(self._plain, self._weights, args, kwargs)
        self._made, self._spec = tree_flatten(made)
        for leaf in self._made:
            if not (isinstance(leaf, Tensor) or is_constant(leaf)):
                raise UnsupportedError(f"it returns {type(leaf).__qualname__}, which a replay cannot bring up to date")
        self._outputs = [t.detach() if isinstance(t, Tensor) else t for t in self._made]
        self._ledger, self._numbers = ledger, ledger.numbers() if ledger.entries else None

    def _backward(self) -> None:
        outputs = [t for t, wanted in zip(self._made, self._differentiable, strict=True) if wanted]
        # As in a loop, where backward runs outside of autocast.
        with _autocast_to(None):
            found = torch.autograd.grad(outputs, self._sources, self._grads, allow_unused=True)
        self._gradients = [
            None if gradient is None else kept for kept, gradient in zip(self._gradients, found, strict=True)
        ]
        torch._foreach_copy_([t for t in self._gradients if t is not None], [t for t in found if t is not None])

    @property
    def waits(self) -> bool:
        """Whether an output of the last replay may still be asked for its gradients."""
        return self._waiting is not None and self._waiting() is not None

    def serves(self, patience: int) -> bool:
        """Say whether the bases still serve, by what the last replay lost."""
        if self._sent is None:
            return True
        self._lost = self._ledger.lost(self._sent.read())
        limits = list(zip(self._lost, self._limits, strict=True))
        missed = [number for number, (lost, (least, most)) in enumerate(limits) if lost < least or lost > most]
        self._missed.update(missed)
        severe = any(lost > _SEVERE * most for lost, (_, most) in limits)
        return not (severe or any(self._missed[number] > patience for number in missed))

    def hand_back(self) -> None:
        """Tell the sites what their bases lost last."""
        for entry, lost in zip(self._ledger.entries, self._lost, strict=False):
            entry.tracker.replayed(entry.key, entry.bases, lost)

    def run(self, leaves: list[Any], parameters: list[nn.Parameter]) -> Any:
        """Replay the forward on these arguments, and return the outputs."""
        waiting = _Waiting()
        self._waiting = weakref.ref(waiting)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs = iter(_Replay.apply(self, waiting, len(tensors), *tensors, *parameters))
        flat = [next(outputs) if isinstance(t, Tensor) else t for t in self._outputs]
        return tree_unflatten(flat, self._spec)

    def forward(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Replay the first graph; return copies of the outputs that are tensors."""
        for place, tensor in zip((t for t in self._inputs if isinstance(t, Tensor)), tensors, strict=True):
            place.detach().copy_(tensor, non_blocking=True)
        self._replay_forward()
        self._sent = None if self._numbers is None else Lagged(self._numbers)
        return [t.clone() for t in self._outputs if isinstance(t, Tensor)]

    def wanted(self) -> list[bool]:
        """Say of each output that is a tensor whether it has a gradient."""
        pairs = zip(self._differentiable, self._outputs, strict=True)
        return [wanted for wanted, t in pairs if isinstance(t, Tensor)]

    def backward(self, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
        """Replay the second graph; return the gradients of inputs and parameters, in memory of their own."""
        given = [grad for grad, wanted in zip(grads, self.wanted(), strict=True) if wanted]
        torch._foreach_copy_(self._grads, given)
        self._replay_backward()
        copies = [None if gradient is None else torch.empty_like(gradient) for gradient in self._gradients]
        pairs = [(c, g) for c, g in zip(copies, self._gradients, strict=True) if c is not None and g is not None]
        torch._foreach_copy_([c for c, _ in pairs], [g for _, g in pairs])
        return copies


class _Waiting:
    """Lives as long as a graph of autograd may ask for the gradients of a replay."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: Graphs, waiting: _Waiting, inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = graphs.forward(tensors[:inputs])
        ctx.graphs, ctx.waiting = graphs, waiting
        ctx.needing = [t.requires_grad for t in tensors]
        constants = [output for output, wanted in zip(outputs, graphs.wanted(), strict=True) if not wanted]
        ctx.mark_non_differentiable(*constants)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.waiting is None:
            raise UnsupportedError(
                "capture: expected one backward for each forward, got a second; call tuckprop.release(model) for that"
            )
        found = iter(ctx.graphs.backward(grads))
        ctx.waiting = ctx.graphs = None
        return None, None, None, *(next(found) if needs else None for needs in ctx.needing)


def _own_bases(plain: nn.Module) -> list[Tensor]:
    """Give every site bases in memory of their own, and return them: graphs read them, or move them, where they are."""
    own: list[Tensor] = []

    def copied(tensor: Tensor) -> Tensor:
        own.append(tensor.clone())
        return own[-1]

    for tracker in trackers(plain):
        tracker.apply(copied)
    return own


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_like(leaf).copy_(leaf.detach()).requires_grad_(leaf.requires_grad)


def autocast_dtype() -> torch.dtype | None:
    """Return what autocast casts to on a GPU, or None where it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _autocast_to(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return autocast to this type, or none, without casts of weights that outlive it: a graph owns its own."""
    if dtype is None and not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    return torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None, cache_enabled=False)


__all__ = ["Graphs", "Plain", "Recorder", "autocast_dtype", "is_constant"]
