"""Activation memory as the paper counts it: a formula over ranks and shapes, not bytes that were measured."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.errors import ConfigError
from tuckprop.layers import PackEvent, Twin, observe
from tuckprop.layers.recomputed_block import RecomputedBlock


class PaperCounter:
    """Counts what the compressed inputs of one or more forwards take, by the paper's formulas.

    A converted convolution or Linear layer counts what its codec's paper counts: `prod k_j + sum n_j k_j` elements for
    HOSVD, all elements of the input for plain training. A block that is computed again counts its own input, and what
    is in it nothing. Norms, activations and pools are not counted, as in the paper.

    Args:
        model: A converted model, or a plain one with `sites`.
        sites: Names of plain modules whose inputs to count besides, as `tuckprop.freeze` returns them.

    Raises:
        ConfigError: A site is no module of the model.

    Example:
        >>> with PaperCounter(model) as counter:  # doctest: +SKIP
        ...     loss_of(model(batch)).backward()
        ...     mebibytes = counter.take() / 2**20
    """

    def __init__(self, model: nn.Module, sites: Sequence[str] | None = None) -> None:
        modules = dict(model.named_modules())
        unknown = [name for name in sites or () if name not in modules]
        if unknown:
            raise ConfigError(f"PaperCounter(sites=...): the model has no module {unknown[0]!r}")
        blocks = [name for name, m in modules.items() if isinstance(m, RecomputedBlock)]
        inside = tuple(f"{name}." for name in blocks)
        plain = [name for name in sites or () if not isinstance(modules[name], Twin) and not name.startswith(inside)]
        self._plain = [modules[name] for name in plain]
        layers = [n for n, m in modules.items() if isinstance(m, Twin) and m.compresses and not n.startswith(inside)]
        self._counted = {id(modules[name]._site) for name in (*blocks, *layers)}
        self._bytes = 0
        self._context = ExitStack()

    def __enter__(self) -> "PaperCounter":
        self._context.enter_context(observe(self._on_pack))
        for module in self._plain:
            self._context.callback(module.register_forward_pre_hook(self._on_plain, with_kwargs=True).remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def _on_pack(self, event: PackEvent) -> None:
        if id(event.site) in self._counted:
            self._bytes += event.paper_count * event.element_size

    def _on_plain(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next(iter((*args, *kwargs.values())), None)
        if isinstance(x, Tensor) and module.training and torch.is_grad_enabled():
            self._bytes += x.numel() * x.element_size()

    def take(self) -> int:
        """Return the bytes counted since the last call."""
        taken, self._bytes = self._bytes, 0
        return taken
