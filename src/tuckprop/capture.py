"""Training steps as CUDA graphs: forward and backward are recorded once, and replayed without the host.

A GPU computes a layer of a small network faster than a host can ask for it, and a compressed layer asks for more, and
smaller, kernels. A graph asks for all of them at once. What it computes is fixed when it is captured: sizes, memory,
and the bases that tracked codecs project on. What these lose is computed by the graph, too, and looked at here after
each step: where they do not serve any more, a step is taken as usual, with new bases, and the next is captured again.
"""

import gc
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from tuckprop.codecs._ledger import Ledger, opened
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.layers import Twin
from tuckprop.layers._held import NoteInputs

log = logging.getLogger("tuckprop")

# Steps in a row that change no basis, after which the first capture is worth its while.
_QUIET = 2

# Kinds of calls that are captured; each has memory of its own.
_MOST_KINDS = 8

# Bases that lose so many times as much as they may are replaced at once.
_SEVERE = 1.25


def capture(model: nn.Module, *, patience: int = 16) -> nn.Module:
    """Replay training steps of `model` as CUDA graphs from now on, in place; a loop stays as it is.

    The first steps are taken as usual, until no site changes its bases any more. From then on a forward in training
    copies its inputs to where the graph reads them, and replays it; `backward` replays the graph of the gradients.
    Gradients reach the parameters as ever, so that optimizers, hooks on parameters, accumulation and clipping do not
    notice. Captured once for every combination of input sizes and types, autocast, modes of modules, and frozen
    parameters. Any other call runs as usual: in eval mode, without gradients, while an earlier output waits for its
    backward, and for good where the model cannot be captured (it reads numbers off the device, or branches on them).

    Where tracked bases lose more than they may, that is seen a step later, as on any GPU, and they are replaced within
    `patience` steps, or at once if they lose a quarter more. A tracker's horizon counts steps that are taken as usual:
    of replays it is known what they lose, too much or needlessly little.

    Hooks on modules within `model` run when a graph is captured, not when it is replayed. Memory that the graphs work
    in is kept between steps.

    Args:
        model: On one CUDA device; converted or plain.
        patience: Steps that bases may lose somewhat more than they may before a step is taken as usual, at least 0.

    Returns:
        `model`.

    Raises:
        ConfigError: `patience` is negative, or `model` is captured already.
        UnsupportedError: `model` has no parameters, is not on one CUDA device, or has a byte budget, which is kept by
            choosing anew between steps.
    """
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
        raise ConfigError(f"capture(patience=...): expected an integer of at least 0, got {patience!r}")
    if isinstance(model.__dict__.get("forward"), _Captures):
        raise ConfigError("capture: this model is captured already; tuckprop.release(model) undoes it")
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if not any(True for _ in model.parameters()):
        devices = set()
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        found = ", ".join(sorted(map(str, devices))) or "no parameters"
        raise UnsupportedError(f"capture: expected a model on one CUDA device, got {found}; call model.cuda() first")
    if any(isinstance(m, Twin) and m._site.allowance is not None for m in model.modules()):
        raise UnsupportedError(
            "capture: this model has a byte budget, which is kept between steps; convert without one"
        )
    model.forward = _Captures(model, model.__dict__.get("forward"), patience)
    return model


def release(model: nn.Module) -> nn.Module:
    """Undo `capture`, and free the memory of the graphs.

    Returns:
        `model`.

    Raises:
        ConfigError: `model` is not captured.
    """
    captures = model.__dict__.get("forward")
    if not isinstance(captures, _Captures):
        raise ConfigError("release: this model is not captured")
    if captures.before is None:
        del model.forward
    else:
        model.forward = captures.before
    return model


class _Captures:
    """The forward of a captured model.

    Args:
        model: The model.
        before: A forward of its own that the model had, or None for that of its class.
        patience: As `capture` says.
    """

    def __init__(self, model: nn.Module, before: Callable[..., Any] | None, patience: int) -> None:
        self.model, self.before, self.patience = model, before, patience
        self._known: dict[Hashable, _Captured | None] = {}
        self._quiet: dict[Hashable, int] = {}
        self._refreshes = -1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward."""
        if self.model.training and torch.is_grad_enabled() and not torch.cuda.is_current_stream_capturing():
            with torch.cuda.device(next(self.model.parameters()).device):
                return self._step(*args, **kwargs)
        return self._plain(*args, **kwargs)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward in training: replayed, where it is captured and still serves."""
        leaves, spec = tree_flatten((args, kwargs))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        key = (*map(_looks, leaves), str(spec), *self._state(), *((p.data_ptr(), p.shape) for p in parameters))
        captured = self._known[key] if key in self._known else self._capture(key, leaves, spec, parameters)
        if captured is not None and not captured.waits:
            if captured.serves(self.patience):
                return captured.run(leaves, parameters)
            captured.hand_back()
            del self._known[key]
            self._quiet[key] = _QUIET  # The next step is captured again.
        return self._plain(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle no graph: it belongs to its process, and to this model's memory."""
        return {"model": self.model, "before": self.before, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without graphs."""
        self.__init__(**state)  # type: ignore[misc]

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.model).forward(self.model, *args, **kwargs)

    def _state(self) -> tuple[Hashable, ...]:
        """Return what else a graph depends on."""
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return autocast, tuple(module.training for module in self.model.modules())

    def _is_quiet(self, key: Hashable) -> bool:
        """Say whether bases have stayed for some calls of this kind."""
        trackers = [m._site.tracker for m in self.model.modules() if isinstance(m, Twin)]
        refreshes = sum(getattr(tracker, "refreshes", 0) for tracker in trackers)
        quiet = self._quiet.get(key, 0)
        self._quiet[key] = quiet + 1 if refreshes == self._refreshes or quiet >= _QUIET else 0
        self._refreshes = refreshes
        return quiet >= _QUIET

    def _capture(
        self, key: Hashable, leaves: list[Any], spec: Any, parameters: list[nn.Parameter]
    ) -> "_Captured | None":
        """Return the graphs of such calls; None where it is too early for them, or where there can be none."""
        if len(self._known) >= _MOST_KINDS or not self._is_quiet(key):
            return None
        del self._quiet[key]
        try:
            self._known[key] = _Captured(_Plain(self.model, self._plain), leaves, spec, parameters)
        except RuntimeError as error:
            # That a capture was broken off says less than what broke it.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            log.warning("capture: this model cannot be captured, and runs as it did: %s", str(cause).splitlines()[0])
            torch.cuda.synchronize()
            self._known[key] = None
        return self._known[key]


def _looks(leaf: Any) -> Hashable:
    """Return what of an argument a graph depends on."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return leaf if isinstance(leaf, Hashable) else repr(leaf)


class _Plain(nn.Module):
    """The model without hooks, and without what has taken the place of its forward."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward."""
        return self._run(*args, **kwargs)


class _Captured:
    """The two graphs of one step, and the memory they read and write.

    Args:
        plain: The model.
        leaves: Its arguments, flat.
        spec: How they were nested.
        parameters: That need a gradient.
    """

    def __init__(self, plain: _Plain, leaves: list[Any], spec: Any, parameters: list[nn.Parameter]) -> None:
        self._inputs = [_copy(leaf) for leaf in leaves]
        needing = [t for t in self._inputs if isinstance(t, Tensor) and t.requires_grad]
        # Their own tensors in the same memory: what accumulates a parameter's gradient belongs to the stream of a step.
        names = {id(parameter): name for name, parameter in plain.named_parameters()}
        weights = {names[id(parameter)]: parameter.detach().requires_grad_() for parameter in parameters}
        sources: list[Tensor] = [*needing, *weights.values()]
        # Outside of the graphs' memory, which the next forward overwrites while these may still be accumulated.
        self._gradients: list[Tensor | None] = [torch.empty_like(source) for source in sources]
        self._graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self._ledger, self._numbers = Ledger(), None
        args, kwargs = tree_unflatten(self._inputs, spec)
        NoteInputs()(plain, args, kwargs)  # They are held whatever a layer keeps of them.
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        torch.cuda.empty_cache()  # Memory of graphs is their own.
        with _uncached_autocast():
            with _recorded(self._graphs[0], pool, stream), opened(self._ledger):
                outputs, self._spec = tree_flatten(functional_call(plain, weights, args, kwargs))
                if self._ledger.entries:
                    self._numbers = self._ledger.numbers()
            differentiable = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
            self._grads = [torch.zeros_like(t) for t in differentiable]
            with _recorded(self._graphs[1], pool, stream):
                found = torch.autograd.grad(differentiable, sources, self._grads, allow_unused=True)
                self._gradients = [
                    None if gradient is None else kept for kept, gradient in zip(self._gradients, found, strict=True)
                ]
                torch._foreach_copy_([t for t in self._gradients if t is not None], [t for t in found if t is not None])
        self._differentiable = [isinstance(t, Tensor) and t.requires_grad for t in outputs]
        self._outputs = [t.detach() if isinstance(t, Tensor) else t for t in outputs]
        del outputs, differentiable, found
        self._limits = [entry.tracker.limits(entry.key) for entry in self._ledger.entries]
        self._host = None if self._numbers is None else torch.empty_like(self._numbers, device="cpu", pin_memory=True)
        self._arrived = torch.cuda.Event()
        self._lost: list[float] = []
        self._replays = 0
        self._missed: Counter[int] = Counter()
        self._waiting: weakref.ref[_Waiting] | None = None

    @property
    def waits(self) -> bool:
        """Whether an output of the last replay may still be asked for its gradients."""
        return self._waiting is not None and self._waiting() is not None

    def serves(self, patience: int) -> bool:
        """Say whether the bases still serve, by what the last replay lost."""
        if self._host is None or not self._replays:
            return True
        self._arrived.synchronize()
        self._lost = self._ledger.lost(self._host.tolist())
        limits = list(zip(self._lost, self._limits, strict=True))
        missed = [number for number, (lost, (least, most)) in enumerate(limits) if lost < least or lost > most]
        self._missed.update(missed)
        severe = any(lost > _SEVERE * most for lost, (_, most) in limits)
        return not (severe or any(self._missed[number] > patience for number in missed))

    def hand_back(self) -> None:
        """Tell the sites what their bases lost last."""
        for entry, lost in zip(self._ledger.entries, self._lost, strict=False):
            entry.tracker.replayed(entry.key, lost)

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
        self._graphs[0].replay()
        if self._host is not None and self._numbers is not None:
            self._host.copy_(self._numbers, non_blocking=True)
            self._arrived.record()
        self._replays += 1
        return [t.clone() for t in self._outputs if isinstance(t, Tensor)]

    def constants(self) -> list[int]:
        """Return the numbers of the outputs, of those that are tensors, that have no gradient."""
        tensors = [wanted for wanted, t in zip(self._differentiable, self._outputs, strict=True) if _is(t)]
        return [number for number, wanted in enumerate(tensors) if not wanted]

    def backward(self, grads: tuple[Tensor, ...], sources: list[Tensor]) -> list[Tensor | None]:
        """Replay the second graph; return the gradients of the sources."""
        for source, kept in zip(sources, self._gradients, strict=True):
            grad = source.grad if source.is_leaf else None
            if kept is not None and grad is not None and grad.data_ptr() == kept.data_ptr():
                source.grad = grad.clone()  # It is added to what comes now.
        tensors = [wanted for wanted, t in zip(self._differentiable, self._outputs, strict=True) if _is(t)]
        given = [grad for grad, wanted in zip(grads, tensors, strict=True) if wanted]
        torch._foreach_copy_(self._grads, given)
        self._graphs[1].replay()
        return [None if gradient is None else gradient.detach() for gradient in self._gradients]


class _Waiting:
    """Lives as long as a graph of autograd may ask for the gradients of a replay."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _Captured, waiting: _Waiting, inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = captured.forward(tensors[:inputs])
        ctx.captured, ctx.waiting = captured, waiting
        ctx.sources = [t for t in tensors if t.requires_grad]
        ctx.wanted = [t.requires_grad for t in tensors]
        ctx.mark_non_differentiable(*(outputs[number] for number in captured.constants()))
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.waiting is None:
            raise UnsupportedError(
                "capture: expected one backward for each forward, got a second; call tuckprop.release(model) for that"
            )
        found = iter(ctx.captured.backward(grads, ctx.sources))
        ctx.waiting = ctx.sources = None
        return None, None, None, *(next(found) if wanted else None for wanted in ctx.wanted)


@contextmanager
def _recorded(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    """Capture what is queued while the context is open; nothing is collected meanwhile, as that can call the device."""
    collecting = gc.isenabled()
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    numbers = generator.clone_state()
    torch.cuda.synchronize()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gc.disable()
        # Other threads may go on calling the device: a data loader's pins memory.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            try:
                yield
            finally:
                graph.capture_end()
        except BaseException:
            # What a capture that ends well does at its end: memory and random numbers are those of steps again.
            generator.graphsafe_set_state(numbers)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(device, pool)
            raise
        finally:
            if collecting:
                gc.enable()
    torch.cuda.current_stream().wait_stream(stream)


def _copy(leaf: Any) -> Any:
    return torch.empty_like(leaf).copy_(leaf).requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _uncached_autocast() -> AbstractContextManager[object]:
    """Return autocast as it is, but without casts of weights that outlive the forward: a graph owns its own."""
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    return torch.autocast("cuda", torch.get_autocast_dtype("cuda"), cache_enabled=False)


__all__ = ["capture", "release"]
