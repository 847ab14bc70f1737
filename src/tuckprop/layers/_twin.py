"""What every converted module has: its plain class, its site, and the one place where activations are packed.

A module is converted by exchanging its class for a twin, a subclass of the plain one: parameters, buffers, hooks, names
and `isinstance` stay as they were, and a module that the model uses under several names is converted once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Size, Tensor, nn

from tuckprop.allocation import Option
from tuckprop.codecs import Codec, Dense, DensePacked, Packed, Tracker
from tuckprop.errors import ConfigError
from tuckprop.layers._allowance import Allowance
from tuckprop.layers._held import Holder, holder
from tuckprop.layers._shared import Choice, shared, uncast
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.standardised import Standardised

log = logging.getLogger("tuckprop")

# How often an activation is packed again, at most, where its form is more than a budget affords.
_TRIES = 8


@dataclass
class Site:
    """A converted module's place in the model and its settings.

    Attributes:
        name: Dotted name of the module in the model.
        codec: How the activation is kept.
        fallbacks: How often the plain tensor was kept because the activation had no decomposition.
        tracker: What the codec carries from step to step, if anything.
        allowance: What all sites may keep together, where there is a budget.
    """

    name: str
    codec: Codec = field(default_factory=Dense)
    fallbacks: int = 0
    tracker: Tracker | None = None
    allowance: Allowance | None = None

    def __post_init__(self) -> None:
        self.tracker = self.codec.tracker()

    def choose(self, option: Option) -> None:
        """Keep activations by this setting from now on."""
        before, self.codec = self.tracker, option.codec
        self.tracker = self.codec.tracker() if before is None else before.heir(self.codec)

    def pack(self, x: Tensor) -> Packed:
        """Return what to keep of `x` for backward: the codec's form, or `x` where that is smaller or costs nothing.

        What an operation holds anyway is counted whole. What the caller holds, the batch, is counted in the codec's
        form, as the paper counts the input of a first layer.
        """
        choice = Choice(None, x.numel())
        held = holder(x)
        if may_shrink(self.codec, x.shape) and (held is None or (held is Holder.CALLER and _observers)):
            choice = shared(
                x, lambda: self.codec, lambda x: self._choose(x, lambda: self._form(x), counts=held is None)
            )
        elif held is None:
            self._count(x, None)
        kept = DensePacked(x) if choice.kept is None or held is not None else choice.kept
        if _observers:
            notify(PackEvent(self, x.shape, x.element_size(), choice.paper_count, kept))
        return kept

    def pack_standardised(self, source: Standardised) -> Packed:
        """Return what to keep of `source.dense()`, which no other layer reads; where that is a tensor, `source.x`."""
        codec = self.tracker
        choice = Choice(None, source.x.numel())
        if codec is not None and may_shrink(self.codec, source.shape):
            with torch.no_grad(), uncast(source.x.device.type):
                choice = self._choose(source.x, lambda: codec.compress_standardised(source), counts=True)
        kept = DensePacked(source.x) if choice.kept is None else choice.kept
        if _observers:
            notify(PackEvent(self, source.shape, source.x.element_size(), choice.paper_count, kept))
        return kept

    def _choose(self, x: Tensor, compress: Callable[[], Packed], counts: bool) -> Choice:
        try:
            form = compress()
            tries = _TRIES if counts else 0
            while tries and not self._affords(x, form):
                form, tries = compress(), tries - 1
        except (NotFactorableError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if not self.fallbacks:
                log.warning("%s: the activation is kept as it is, this time: %s", self.name, error)
            self.fallbacks += 1
            if self.allowance is not None:
                self.allowance.ignore()
            return Choice(None, x.numel())
        if counts:
            self._count(x, form)
        return Choice(form if is_smaller(form, x) else None, form.paper_count())

    def _form(self, x: Tensor) -> Packed:
        return (self.tracker or self.codec).compress(x)

    def _affords(self, x: Tensor, form: Packed) -> bool:
        return self.allowance is None or self.allowance.affords(self.name, kept_bytes(x, form), x.numel())

    def _count(self, x: Tensor, form: Packed | None) -> None:
        if self.allowance is not None:
            self.allowance.add(self.name, kept_bytes(x, form), x.numel())


def may_shrink(codec: Codec, shape: Size) -> bool:
    """Say whether packing is worth an attempt."""
    return codec.worth_trying(shape)


def is_smaller(packed: Packed, x: Tensor) -> bool:
    """Say whether the packed form is worth keeping: never hold more than plain PyTorch would."""
    return packed.nbytes < plain_bytes(x)


def kept_bytes(x: Tensor, form: Packed | None) -> int:
    """Return the bytes of what is kept of `x`: its form, or where there is none, or none that is smaller, itself."""
    return plain_bytes(x) if form is None else min(form.nbytes, plain_bytes(x))


def plain_bytes(x: Tensor) -> int:
    """Return the bytes that plain PyTorch holds to keep `x`: those of an expanded axis once."""
    expanded = prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride == 0)
    return x.numel() // expanded * x.element_size()


@dataclass(frozen=True)
class PackEvent:
    """One activation was packed.

    Attributes:
        site: Where.
        shape: Shape of the activation.
        element_size: Bytes of one element.
        paper_count: Elements that the codec's paper counts for its form, also where the tensor itself is kept.
        kept: What is kept, the codec's form or the tensor itself.
    """

    site: Site
    shape: Size
    element_size: int
    paper_count: int
    kept: Packed


_observers: list[Callable[[PackEvent], None]] = []


def notify(event: PackEvent) -> None:
    """Tell every observer of `event`."""
    for observer in _observers:
        observer(event)


@contextmanager
def observe(callback: Callable[[PackEvent], None]) -> Iterator[None]:
    """Call `callback` with every PackEvent of every site while the context is open."""
    _observers.append(callback)
    try:
        yield
    finally:
        _observers.remove(callback)


class Twin(nn.Module):
    """Mixin of every converted module.

    Attributes:
        plain: The class of the module before conversion.
        compresses: Whether the layer is a place for a codec by itself (convolution, Linear), as opposed to a pointwise
            layer, norm or pool, which follows its neighbours.
        lossy: Whether the layer's gradient is approximate whatever the codec; a lossless codec leaves the layer plain.
    """

    plain: ClassVar[type[nn.Module]]
    compresses: ClassVar[bool] = False
    lossy: ClassVar[bool] = False
    _site: Site

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the weight's gradient for an input in packed form and a gradient of the output; where `compresses`."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Twin":
        super()._apply(fn, recurse)
        if self._site.tracker is not None:
            self._site.tracker.apply(fn)
        return self

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why this particular plain module cannot be converted, or None if it can."""
        return None


def require_module(model: nn.Module, caller: str) -> None:
    """Check what a function of this name was given.

    Raises:
        ConfigError: It is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{caller}(model=...): expected a torch.nn.Module, got {type(model).__name__}")


def trackers(model: nn.Module) -> Iterator[Tracker]:
    """Yield what every site of a model carries from step to step."""
    for module in model.modules():
        if isinstance(module, Twin) and module._site.tracker is not None:
            yield module._site.tracker


_T = TypeVar("_T", bound=type[Twin])
_twins: dict[tuple[type[nn.Module], type[Codec]], type[Twin]] = {}


# A twin registered for no codec in particular.
_ANY: Any = Codec


def twin_of(plain: type[nn.Module], codec: type[Codec] = _ANY) -> Callable[[_T], _T]:
    """Return a decorator that registers a twin for modules whose exact class is `plain`.

    Args:
        plain: The class to convert.
        codec: Serve this codec alone; the default serves every codec that has no twin of its own.

    Raises:
        ConfigError: There is such a twin already (raised when the decorator is applied).
    """

    def register(twin: _T) -> _T:
        if (plain, codec) in _twins:
            raise ConfigError(f"{plain.__qualname__} has a twin already: {_twins[plain, codec].__qualname__}")
        _twins[plain, codec] = twin
        twin.plain = plain
        return twin

    return register


def find_twin(module: nn.Module, codec: Codec) -> type[Twin] | None:
    """Return the twin for this module and codec, or None; the class must match exactly, as a subclass may differ."""
    plain = type(module)
    return _twins.get((plain, type(codec))) or _twins.get((plain, _ANY))


# Layers that keep nothing of the activation's size, or whose activation belongs to another module.
_quiet: list[type[nn.Module]] = [
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Embedding, nn.ZeroPad2d, nn.PixelShuffle, nn.Upsample, nn.Softmax,
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
]  # fmt: skip


def nothing_to_gain(*plain: type[nn.Module]) -> None:
    """Note classes that keep nothing of the activation's size, so that a plan passes over their modules in silence."""
    _quiet.extend(plain)


def not_convertible(module: nn.Module) -> str | None:
    """Return why a module without a twin is left alone, or None where there is nothing to gain."""
    if isinstance(module, tuple(_quiet)):
        return None
    kinds = [plain for plain, _ in _twins if isinstance(module, plain)]
    if kinds:
        own = type(module).__qualname__
        return f"{own} is a subclass of {kinds[0].__name__} and may compute otherwise; only exact classes are converted"
    if isinstance(module, nn.SyncBatchNorm):
        return "its statistics come from other processes; it stays plain"
    return f"no twin for {type(module).__qualname__}"


def all_twins() -> dict[tuple[type[nn.Module], type[Codec]], type[Twin]]:
    """Return every registered twin by plain class and codec class."""
    return dict(_twins)


def become_twin(module: nn.Module, twin: type[Twin], site: Site) -> None:
    """Convert `module` in place."""
    module.__class__ = twin
    module.__dict__["_site"] = site


def become_plain(module: Twin) -> None:
    """Undo `become_twin`."""
    module.__dict__.pop("_site")
    module.__class__ = module.plain  # type: ignore[assignment]


def trains(module: nn.Module, x: Tensor, *parameters: Tensor | None) -> bool:
    """Say whether a call with input `x` is a training step with a gradient to compute; any other runs the plain op."""
    if not (module.training and torch.is_grad_enabled()):
        return False
    wanted = False
    for t in (x, *parameters):
        if t is not None:
            wanted = wanted or t.requires_grad
            if not t.numel():
                return False
    return wanted and x.is_floating_point() and x.layout == torch.strided and not x.is_nested and not x.is_meta


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast floating tensors as autocast would for a matrix product; a no-op outside autocast.

    Done before the autograd function, so that PyTorch's own casts carry the gradients back.
    """
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )
