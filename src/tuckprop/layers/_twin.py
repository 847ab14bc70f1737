"""What every converted module has: its plain class, its site, and the one place where activations are packed.

A module is converted by exchanging its class for a twin, a subclass of the plain one: parameters, buffers, hooks, names
and `isinstance` stay as they were, and a module that the model uses under several names is converted once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Size, Tensor, nn
from torch._C import _LinAlgError as LinAlgError

from tuckprop.codecs import Codec, Dense, DensePacked, Packed
from tuckprop.errors import ConfigError
from tuckprop.layers._shared import shared
from tuckprop.linalg.basis import NotFactorableError

log = logging.getLogger("tuckprop")


@dataclass
class Site:
    """A converted module's place in the model and its settings.

    Attributes:
        name: Dotted name of the module in the model.
        codec: How the activation is kept.
        fallbacks: How often the plain tensor was kept because the activation had no decomposition.
    """

    name: str
    codec: Codec = field(default_factory=Dense)
    fallbacks: int = 0

    def pack(self, x: Tensor) -> Packed:
        """Return what to keep of `x` for backward: the codec's form, or `x` where that is smaller or all there is."""
        form: Packed | None = None
        if may_shrink(self.codec, x.shape):
            form = shared(x, self.codec, self._compress)
        packed = form if form is not None and is_smaller(form, x) else DensePacked(x)
        notify(PackEvent(self, x.shape, x.element_size(), form or packed, packed))
        return packed

    def _compress(self, x: Tensor) -> Packed | None:
        try:
            return self.codec.compress(x)
        except (NotFactorableError, LinAlgError) as error:
            if not self.fallbacks:
                log.warning("%s: the activation is kept as it is, this time: %s", self.name, error)
            self.fallbacks += 1
            return None


def may_shrink(codec: Codec, shape: Size) -> bool:
    """Say whether packing is worth an attempt."""
    return codec.worth_trying(shape)


def is_smaller(packed: Packed, x: Tensor) -> bool:
    """Say whether the packed form is worth keeping: never hold more than plain PyTorch would."""
    return packed.nbytes < x.numel() * x.element_size()


@dataclass(frozen=True)
class PackEvent:
    """One activation was packed.

    Attributes:
        site: Where.
        shape: Shape of the activation.
        element_size: Bytes of one element.
        form: The codec's own form, which its paper counts.
        kept: What is kept, `form` or the tensor itself.
    """

    site: Site
    shape: Size
    element_size: int
    form: Packed
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
    """

    plain: ClassVar[type[nn.Module]]
    compresses: ClassVar[bool] = False
    _site: Site

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why this particular plain module cannot be converted, or None if it can."""
        return None


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
_QUIET = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Embedding, nn.ZeroPad2d, nn.PixelShuffle, nn.Upsample, nn.Softmax)


def not_convertible(module: nn.Module) -> str | None:
    """Return why a module without a twin is left alone, or None where there is nothing to gain."""
    if isinstance(module, _QUIET):
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
