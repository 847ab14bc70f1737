"""Spend a byte budget where it buys the most exact gradient: one codec setting a site, from one calibration batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tuckprop.codecs import ASI, HOSVD, Codec, DensePacked, Packed
from tuckprop.codecs._tucker import TuckerPacked, counted
from tuckprop.errors import ConfigError
from tuckprop.layers import PackEvent, Twin, observe
from tuckprop.layers._twin import plain_bytes
from tuckprop.linalg.basis import NotFactorableError

# Shares of variance that are tried at each site.
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)

# Those that ASI's paper tries.
PERPLEXITY_GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Option:
    """One setting of one site, on the calibration batch.

    Attributes:
        codec: The setting.
        nbytes: Bytes it keeps.
        error: Squared Frobenius error of the weight gradient, over the squared norm of the exact one; for ASI the
            Frobenius error itself, which its paper calls perplexity.
    """

    codec: Codec
    nbytes: int
    error: float


def parse_bytes(budget: int | str) -> int:
    """Return a budget in bytes from a number of bytes or a text such as "64MB" (10^6) or "64MiB" (2^20).

    Raises:
        ConfigError: It is neither, or not positive.
    """
    value: float = math.nan
    if isinstance(budget, int) and not isinstance(budget, bool):
        value = budget
    elif isinstance(budget, str):
        text = budget.strip().lower()
        digits = text.rstrip("bikmg ")
        unit = text[len(digits) :].strip() or "b"
        try:
            value = float(digits) * _UNITS[unit]
        except (ValueError, KeyError):
            value = math.nan
    if not value >= 1 or math.isinf(value):
        raise ConfigError(f'budget: expected bytes as a positive integer or as a text like "64MB", got {budget!r}')
    return int(value)


def allocate(tables: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Choose one option a site so that bytes stay within the budget and the summed error is near its least.

    A Lagrange multiplier prices a byte the same everywhere; bisection finds the lowest price that the budget affords,
    and what is left over buys the best single upgrades. Exact on the convex hull of each site's options.

    Args:
        tables: The options of each site, at least one each.
        budget: Bytes for all sites together.

    Returns:
        The chosen option by site.

    Raises:
        ConfigError: Even the smallest options do not fit.
    """
    least = sum(min(option.nbytes for option in options) for options in tables.values())
    if least > budget:
        raise ConfigError(f"budget: {budget} bytes are too few; the smallest forms of all sites take {least} bytes")

    def choose(price: float) -> dict[str, Option]:
        return {
            site: min(options, key=lambda o: (o.error + price * o.nbytes, o.nbytes)) for site, options in tables.items()
        }

    def cost(chosen: Mapping[str, Option]) -> int:
        return sum(option.nbytes for option in chosen.values())

    low, high = 0.0, 1.0
    if cost(choose(low)) <= budget:
        return choose(low)
    while cost(choose(high)) > budget:
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(choose(middle)) <= budget else (middle, high)
    chosen = choose(high)
    while True:
        spare = budget - cost(chosen)
        upgrades = [
            ((chosen[site].error - o.error) / max(1, o.nbytes - chosen[site].nbytes), site, o)
            for site, options in tables.items()
            for o in options
            if o.error < chosen[site].error and o.nbytes - chosen[site].nbytes <= spare
        ]
        if not upgrades:
            return chosen
        _, site, option = max(upgrades, key=lambda upgrade: upgrade[0])
        chosen[site] = option


def trials(codec: Codec, x: Tensor) -> Iterator[tuple[Codec, Packed, int]]:
    """Yield the settings of `codec` to try on the activation `x`, the form of `x` to judge each by, and its bytes.

    For ASI the settings are the ranks that HOSVD has at each of the published shares of variance, and the form is
    HOSVD's, as published: that to which iteration leads. For others they are the shares of `GRID`, by their own forms.

    Raises:
        ConfigError: The codec has nothing to set.
    """
    if isinstance(codec, ASI):
        for share in PERPLEXITY_GRID:
            form = cast(TuckerPacked, HOSVD(share).compress(x))
            yield ASI(form.ranks), form, counted(x.shape, form.ranks) * x.element_size()
        return
    if not any(field.name == "epsilon" for field in fields(codec)):
        raise ConfigError(
            f"budget: {codec!r} has no epsilon or ranks to choose; use Subspace(), HOSVD(), SVD() or ASI()"
        )
    for share in GRID:
        setting = replace(codec, epsilon=share)  # type: ignore[call-arg]
        packed = (setting.tracker() or setting).compress(x)
        yield setting, packed, packed.nbytes


def tabulate(
    model: nn.Module, codec: Codec, sites: Sequence[str], run: Callable[[], Tensor]
) -> dict[str, list[Option]]:
    """Measure every setting at every site on one batch: bytes, and the error of the weight gradient.

    Args:
        model: The model, its sites converted with `Dense()`.
        codec: The kind of codec to set.
        sites: Names of the converted convolutions and Linear layers.
        run: Runs the model on the batch and returns a scalar loss.

    Returns:
        The options by site; sites that the loss does not reach have none.
    """
    modules = {name: cast(Twin, model.get_submodule(name)) for name in sites}
    names = {id(module._site): name for name, module in modules.items()}
    inputs: dict[str, list[Tensor]] = {name: [] for name in sites}
    tables: dict[str, list[Option]] = {}

    def keep_input(event: PackEvent) -> None:
        if isinstance(event.kept, DensePacked) and id(event.site) in names:
            inputs[names[id(event.site)]].append(event.kept.x.detach())

    def on_gradient(name: str, grad: Tensor) -> None:
        # Uses of one layer come back in reverse order; the first to come back is tabulated.
        if inputs[name] and name not in tables:
            tables[name] = _options(modules[name], codec, inputs[name].pop(), grad)
        inputs[name].clear()

    handles = []
    for name, module in modules.items():

        def watch(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            if output.requires_grad:
                output.register_hook(lambda grad: on_gradient(name, grad))

        handles.append(module.register_forward_hook(watch))
    try:
        with observe(keep_input):
            loss = run()
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return tables


def _options(module: Twin, codec: Codec, x: Tensor, grad: Tensor) -> list[Option]:
    grad = grad.reshape(len(x), *grad.shape[grad.dim() - x.dim() + 1 :])
    exact = module.weight_gradient(DensePacked(x), grad)
    norm = float(exact.norm()) or 1.0
    options = [Option(codec, x.numel() * x.element_size(), 0.0)]
    seen: set[int] = set()
    with suppress(NotFactorableError):
        for setting, packed, nbytes in trials(codec, x):
            if nbytes in seen or nbytes >= plain_bytes(x):
                continue
            seen.add(nbytes)
            distance = float((module.weight_gradient(packed, grad) - exact).norm())
            error = distance if isinstance(codec, ASI) else (distance / norm) ** 2
            options.append(Option(setting, nbytes, error))
    return options


def example_loss(output: Any) -> Tensor:
    """Return a loss for a model's output where the task's own is not at hand.

    For two-dimensional outputs, cross-entropy to labels drawn from the model's own prediction, whose gradients have the
    Fisher information as their covariance; else the mean square.
    """
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    elif isinstance(output, (tuple, list)):
        output = output[0]
    tensor = cast(Tensor, output)
    if tensor.dim() == 2 and tensor.shape[1] > 1:
        generator = torch.Generator().manual_seed(0)
        labels = torch.multinomial(tensor.detach().float().softmax(1).cpu(), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(tensor, labels.to(tensor.device))
    return tensor.float().square().mean()
