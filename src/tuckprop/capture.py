"""Training steps as CUDA graphs: forward and backward are recorded once, and replayed without the host.

A GPU computes a layer of a small network faster than a host can ask for it, and a compressed layer asks for more, and
smaller, kernels. A graph asks for all of them at once. What it computes is fixed when it is captured: sizes, memory,
and the bases that tracked codecs project on. What these lose is computed by the graph, too, and looked at here after
each step: where they do not serve any more, a step is taken as usual, with new bases, and the next is captured again.
"""

import inspect
import logging
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from tuckprop.codecs._recent import Recent
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.graphs import Graphs, Plain, Recorder, autocast_dtype, is_constant
from tuckprop.layers import Twin, require_module, trackers
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.linalg.lagged import capturing

log = logging.getLogger("tuckprop")

# Steps in a row that change no basis, after which the first capture is worth its while.
_QUIET = 2

# Kinds of calls that are captured; each has memory of its own. One that has not come for so many calls makes room for
# another.
_MOST_KINDS = 8
_STALE = 256


def capture(model: nn.Module, *, patience: int = 16) -> nn.Module:
    """Replay training steps of `model` as CUDA graphs from now on, in place; a loop stays as it is.

    The first steps are taken as usual, until no site changes its bases any more. From then on a forward in training
    copies its inputs to where the graph reads them, and replays it; `backward` replays the graph of the gradients.
    Gradients reach the parameters as ever, so that optimizers, hooks on parameters, accumulation and clipping do not
    notice. There is a capture for every combination of sizes and types of inputs, autocast, modes and classes of
    modules, and memory of parameters and buffers, up to eight; one that has not been asked for in 256 calls makes room
    for another. Any other call runs as usual: in eval mode, without gradients, with arguments other than tensors on the
    device and plain values, under hooks on saved tensors, within a transform or a compiled function, while an earlier
    output waits for its backward, and where the model cannot be captured: where it reads numbers off the device,
    branches on them, or saves the state of random numbers, as `tuckprop.recompute` and `torch.utils.checkpoint` do.

    What else Python decides in a forward is decided once, when it is captured: a rate of dropout that a schedule
    changes, layers that are skipped at random by the host, an attribute that is a number.

    Where tracked bases lose more than they may, that is seen a step later, as on any GPU, and they are replaced after
    `patience` such steps, or at once if they lose a quarter more. A tracker's horizon counts steps that are taken as
    usual: of replays it is known what they lose, too much or needlessly little.

    Hooks on modules within `model` run when a graph is captured, not when it is replayed. Memory that the graphs work
    in is kept between steps, for each kind of call.

    Args:
        model: On one CUDA device; converted or plain. Of one that is to be wrapped, as `DistributedDataParallel` does,
            capture the module inside.
        patience: Steps that a site's bases may lose more than they may before a step is taken as usual, at least 0.

    Returns:
        `model`.

    Raises:
        ConfigError: `model` is no module or captured already, or `patience` is negative.
        UnsupportedError: `model` has no parameters, is not on one CUDA device, is a wrapper that works on gradients
            itself, or has a byte budget, which is kept by choosing anew between steps.
    """
    require_module(model, "capture")
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
        raise ConfigError(f"capture(patience=...): expected an integer of at least 0, got {patience!r}")
    if isinstance(model.__dict__.get("forward"), _Captures):
        raise ConfigError("capture: this model is captured already; tuckprop.release(model) undoes it")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or _is_sharded(model):
        kind = type(model).__name__
        raise UnsupportedError(f"capture: {kind} works on gradients itself; capture the module inside it beforehand")
    parameters = list(model.parameters())
    devices = {tensor.device for tensor in (*parameters, *model.buffers())} if parameters else set()
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        found = ", ".join(sorted(map(str, devices))) or "no parameters"
        raise UnsupportedError(f"capture: expected a model on one CUDA device, got {found}; call model.cuda() first")
    if any(isinstance(m, Twin) and m._site.allowance is not None for m in model.modules()):
        raise UnsupportedError("capture: this model has a byte budget, which is kept between steps; take another plan")
    model.forward = _Captures(model, model.__dict__.get("forward"), patience)
    return model


def release(model: nn.Module) -> nn.Module:
    """Undo `capture`, and free the memory of the graphs.

    Returns:
        `model`.

    Raises:
        ConfigError: `model` is no module, or not captured.
    """
    require_module(model, "release")
    captures = model.__dict__.get("forward")
    if not isinstance(captures, _Captures):
        raise ConfigError("release: this model is not captured")
    if captures.before is None:
        del model.forward
    else:
        model.forward = captures.before
    return model


def _is_sharded(model: nn.Module) -> bool:
    return type(model).__name__.startswith(("FSDP", "FullyShardedDataParallel"))


class _Captures:
    """The forward of a captured model.

    Args:
        model: The model.
        before: A forward of its own that the model had, or None for that of its class.
        patience: As `capture` says.
    """

    def __init__(self, model: nn.Module, before: Callable[..., Any] | None, patience: int) -> None:
        self.model, self.before, self.patience = model, before, patience
        self.known: dict[Hashable, Graphs | None] = {}
        self._calls = 0
        self._came: dict[Hashable, int] = {}
        self._quiet: dict[Hashable, int] = Recent()
        self._refreshes = -1

    @property
    def __signature__(self) -> inspect.Signature:
        """Have the arguments of the model's own forward, which trainers look at."""
        return inspect.signature(self.before or MethodType(type(self.model).forward, self.model))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward."""
        device = _device(self.model)
        if device is None or not self._may_replay(device):
            return self._plain(*args, **kwargs)
        return self._step(device, args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle no graph: it belongs to its process, and to this model's memory."""
        return {"model": self.model, "before": self.before, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without graphs."""
        self.__init__(**state)  # type: ignore[misc]

    def _may_replay(self, device: torch.device) -> bool:
        """Say whether this is an ordinary training step, of which nobody watches the parts."""
        return (
            self.model.training
            and torch.is_grad_enabled()
            and not capturing(device)
            and not torch.compiler.is_compiling()
            # No second forward of a block that is checkpointed, no transform, no hooks on saved tensors.
            and torch._C._current_graph_task_id() == -1
            and torch._C._functorch.peek_interpreter_stack() is None
            and not _has_saved_tensors_hooks()
        )

    @uncompiled
    def _step(self, device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a forward in training: replayed, where it is captured and still serves."""
        leaves, spec = tree_flatten((args, kwargs))
        if not all(_is_plain_tensor(leaf, device) or is_constant(leaf) for leaf in leaves):
            return self._plain(*args, **kwargs)
        with _on(device):
            key = self._key(leaves, spec)
            self._calls += 1
            graphs = self.known[key] if key in self.known else self._capture(key, leaves, spec, device)
            if key in self.known:
                self._came[key] = self._calls
            if graphs is not None and not graphs.waits:
                if graphs.serves(self.patience):
                    return graphs.run(leaves, [p for p in self.model.parameters() if p.requires_grad])
                graphs.hand_back()
                # The next step is captured again. Meanwhile the graphs' memory serves this one.
                del self.known[key], self._came[key], graphs
                self._quiet[key] = _QUIET
                _free()
            return self._plain(*args, **kwargs)

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.model).forward(self.model, *args, **kwargs)

    def _key(self, leaves: list[Any], spec: Any) -> Hashable:
        """Return all that a graph depends on."""
        memory = (
            (t.data_ptr(), t.shape, t.dtype, t.requires_grad) for t in (*self.model.parameters(), *self.model.buffers())
        )
        modules = ((type(module), module.training) for module in self.model.modules())
        return *map(_looks, leaves), str(spec), autocast_dtype(), *memory, *modules

    def _is_quiet(self, key: Hashable) -> bool:
        """Say whether bases have stayed for some calls of this kind."""
        refreshes = sum(getattr(tracker, "refreshes", 0) for tracker in trackers(self.model))
        quiet = self._quiet.get(key, 0)
        self._quiet[key] = quiet + 1 if refreshes == self._refreshes or quiet >= _QUIET else 0
        self._refreshes = refreshes
        return quiet >= _QUIET

    def _has_room(self) -> bool:
        """Say whether one more kind may be captured, if need be in place of one that comes no more."""
        if len(self.known) < _MOST_KINDS:
            return True
        oldest = min(self._came, key=self._came.__getitem__)
        if self._calls - self._came[oldest] < _STALE:
            return False
        del self.known[oldest], self._came[oldest]
        _free()
        return True

    def _capture(self, key: Hashable, leaves: list[Any], spec: Any, device: torch.device) -> Graphs | None:
        """Return the graphs of such calls; None where it is too early for them, or where there can be none."""
        if not self._is_quiet(key) or not self._has_room():
            return None
        del self._quiet[key]
        try:
            graphs = Graphs(Plain(self.model, self._plain), leaves, spec, Recorder(device))
        except Exception as error:
            # That a capture was broken off says less than what broke it.
            cause = str(error.__context__ or error).strip() or type(error).__name__
            log.warning("capture: this model cannot be captured, and runs as it did: %s", cause.splitlines()[0])
            _free()
            self.known[key] = None
            return None
        if self._key(leaves, spec) != key:
            log.warning("capture: this model cannot be captured, and runs as it did: it replaces its own buffers")
            self.known[key] = None
            return None
        self.known[key] = graphs
        return graphs


def _device(model: nn.Module) -> torch.device | None:
    """Return the GPU that the model is on, if it is on one."""
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None and parameter.is_cuda else None


def _has_saved_tensors_hooks() -> bool:
    """Say whether hooks on saved tensors are set, where PyTorch can tell: from 2.8 on."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _free() -> None:
    """Give memory that nothing uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _is_plain_tensor(leaf: Any, device: torch.device) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.device == device and not leaf.is_nested


def _looks(leaf: Any) -> Hashable:
    """Return what of an argument a graph depends on."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.requires_grad
    return type(leaf), leaf


__all__ = ["capture", "release"]
