"""One forward and backward, measured three ways that are never mixed: held bytes, the paper's count, the peak."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuckprop.errors import ConfigError
from tuckprop.layers import Twin, require_module
from tuckprop.memory.census import census, untouched
from tuckprop.memory.paper import PaperCounter
from tuckprop.memory.peak import allocator_peak


@dataclass(frozen=True)
class SiteBytes:
    """What one module holds for backward.

    Attributes:
        name: Dotted name; "" for operations outside the model's modules.
        kind: Class name of the module.
        codec: The codec of a converted module, or "".
        bytes: Bytes of the storages it was the first to keep.
    """

    name: str
    kind: str
    codec: str
    bytes: int


@dataclass(frozen=True)
class MemoryReport:
    """What a forward and backward took. Bytes throughout.

    Attributes:
        held_bytes: Held for backward when the forward ends: unique storages, without parameters, buffers, inputs.
        naive_bytes: The same with shared storages counted each time.
        paper_bytes: The codec's own count over compressed layers (Nguyen et al., NeurIPS 2024), not a measurement.
        peak_bytes: Most bytes allocated at once during forward and backward, over what was there before: by the CUDA
            allocator, or on a CPU by the profiler's allocation events.
        device: Where the model is.
        sites: Held bytes by module, most first.
        fallbacks: How often a site kept the plain tensor because it had no decomposition.
    """

    held_bytes: int
    naive_bytes: int
    paper_bytes: int
    peak_bytes: int
    device: str
    sites: tuple[SiteBytes, ...]
    fallbacks: int

    def __str__(self) -> str:
        width = max([len(s.name) for s in self.sites] + [4])
        lines = [f"{'site':<{width}}  {'type':<24}  {'codec':<28}  {'held, KiB':>10}"]
        lines += [f"{s.name:<{width}}  {s.kind:<24}  {s.codec:<28}  {s.bytes / 1024:>10.1f}" for s in self.sites]
        lines += [
            f"held for backward  {self.held_bytes / 2**20:10.2f} MiB",
            f"paper's count      {self.paper_bytes / 2**20:10.2f} MiB",
            f"peak ({self.device})         {self.peak_bytes / 2**20:10.2f} MiB",
        ]
        if self.fallbacks:
            lines.append(f"kept as they are, as they had no decomposition: {self.fallbacks} activations so far")
        return "\n".join(lines)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"a tensor of shape {tuple(value.shape)}" + (" that needs one" if value.requires_grad else " without one")


def measure(model: nn.Module, loss_fn: Callable[[nn.Module], Tensor]) -> MemoryReport:
    """Run `loss_fn(model)` and its backward twice, once to count held bytes and once for the peak.

    Gradients, buffers, training flags and the random state are put back afterwards.

    Args:
        model: Any model, converted or not, in the mode it is to be measured in.
        loss_fn: Takes the model, runs it on a batch and returns a scalar loss that needs a gradient.

    Returns:
        The report.

    Raises:
        ConfigError: `model` is no module, or `loss_fn` no function that returns a scalar tensor that needs a gradient.
    """
    require_module(model, "measure")
    if not callable(loss_fn):
        got = f"a tensor of shape {tuple(loss_fn.shape)}" if isinstance(loss_fn, Tensor) else repr(loss_fn)
        raise ConfigError(
            "measure(loss_fn=...): expected a function that takes the model and returns a loss, such as "
            f"lambda model: model(x).square().mean(), got {got}"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modules = dict(model.named_modules())
    with untouched(model), PaperCounter(model) as counter:
        with census(model) as counted:
            loss = loss_fn(model)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise ConfigError(
                    f"measure(loss_fn=...): expected a scalar loss that needs a gradient, got {_described(loss)}"
                )
            by_module = counted.by_module()
        paper = counter.take()
        loss.backward()
        del loss
        for parameter in model.parameters():
            parameter.grad = None
        peak = allocator_peak(lambda: loss_fn(model).backward(), device)
    twins = [m for m in modules.values() if isinstance(m, Twin)]
    sites = []
    for name, nbytes in sorted(by_module.items(), key=lambda item: -item[1]):
        module = modules.get(name, model)
        codec = repr(module._site.codec) if isinstance(module, Twin) else ""
        kind = (module.plain if isinstance(module, Twin) else type(module)).__name__
        sites.append(SiteBytes(name, kind, codec, nbytes))
    return MemoryReport(
        held_bytes=sum(by_module.values()),
        naive_bytes=counted.naive_bytes,
        paper_bytes=paper,
        peak_bytes=peak,
        device=str(device),
        sites=tuple(sites),
        fallbacks=sum(twin._site.fallbacks for twin in twins),
    )
