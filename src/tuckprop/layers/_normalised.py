"""What the norms share: the normalised input, kept in the codec's form where that is smaller than the input."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tuckprop.codecs import DensePacked, Packed
from tuckprop.layers import _twin
from tuckprop.layers._ordinary import is_ordinary
from tuckprop.layers._twin import Site
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.standardised import Standardised

# Of input, weight and bias.
Gradients = list[Tensor | None]


def saves(*tensors: Tensor | None) -> bool:
    """Say whether a call with these inputs and parameters keeps anything for backward, on tensors a saver can serve."""
    present = [t for t in tensors if t is not None]
    return torch.is_grad_enabled() and any(t.requires_grad for t in present) and all(map(is_ordinary, present))


def pack_normalised(site: Site, x: Tensor, normalise: Callable[[], Tensor]) -> tuple[Packed | None, Tensor | None]:
    """Return the codec's form of the normalised input, or None where keeping `x` itself is as good.

    Called before the output is computed, so that the normalised input and the output are not held together.

    Args:
        site: The norm's site.
        x: The input.
        normalise: Computes the normalised input, of the shape of `x`: the only work buffer.

    Returns:
        The packed form, and the work buffer, which may be overwritten; None where there is none. The normalised input
        rather than `x`: a mean that dwarfs the rest would take all of epsilon.
    """
    if not _twin.may_shrink(site.codec, x.shape):
        return None, None
    with torch.no_grad():
        buffer = normalise()
        packed = site.pack(buffer)
    if isinstance(packed, DensePacked):
        return None, buffer
    memory = buffer.untyped_storage().data_ptr()
    shares = any(tensor.untyped_storage().data_ptr() == memory for tensor in packed.tensors())
    return packed, None if shares else buffer


def pack_tracked(site: Site, x: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Packed | None:
    """Return the codec's form of the normalised input, or None where keeping `x` itself is as good; the norm has run.

    For sites with a tracker, which need the normalised input only now and then.

    Args:
        site: The norm's site.
        x: The input.
        mean: Of `x` over the normalised axes, broadcasting with it.
        invstd: `1 / sqrt(variance + eps)`, likewise.
        eps: As there.
    """
    with torch.no_grad():
        energy = Energy.standardised(x.numel(), invstd, eps)
        work = work_dtype(x)
        source = Standardised(x.detach(), mean.to(work), invstd.to(work), energy)
        packed = site.pack_standardised(source)
    return None if isinstance(packed, DensePacked) else packed


def keep(ctx: Any, x: Tensor, packed: Packed | None) -> tuple[Tensor, ...]:
    """Return the tensors to save, of `packed` or else `x`; `kept` finds them again by what is noted in `ctx`."""
    ctx.packed = None if packed is None else (type(packed), packed.meta)
    return (x,) if packed is None else packed.tensors()


def kept(ctx: Any, tensors: Sequence[Tensor]) -> Packed | None:
    """Return the packed form that was kept, or None where `tensors` is the input alone."""
    if ctx.packed is None:
        return None
    kind, meta = ctx.packed
    packed: Packed = kind.rebuild(tensors, meta)
    return packed


def room_for(grad: Tensor, owned: bool, wanted: bool) -> Tensor | None:
    """Return where to write the gradient of the input: over that of the output, if it is owned; None if not wanted."""
    if not wanted:
        return None
    return grad if owned else torch.empty_like(grad)


def work_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics of `x`: float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)
