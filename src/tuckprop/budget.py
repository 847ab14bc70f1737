"""Spend a byte budget where it buys the most exact gradient: one codec setting a site, from one calibration batch."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tuckprop.allocation import Option
from tuckprop.codecs import ASI, HOSVD, Codec, Dense, DensePacked, Packed
from tuckprop.codecs._tucker import TuckerPacked, counted
from tuckprop.errors import ConfigError
from tuckprop.layers import PackEvent, Twin, observe
from tuckprop.layers._twin import plain_bytes
from tuckprop.linalg.basis import NotFactorableError

# Shares of variance that are tried at each site.
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)

# The six that ASI's paper tries, and some beyond, as those alone leave large budgets unused.
PERPLEXITY_GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)

# From one setting of a site to the next, bytes grow by this factor at most, but where no share lies between.
_STEP = 1.1

# So many sites are few: ASI, whose settings are all measured, then tries as many as it takes, for this many halvings of
# what lies between two shares at most.
_FEW, _HALVINGS = 8, 4

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


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


@dataclass
class Table:
    """The settings of one site.

    Attributes:
        measured: Those whose bytes were measured.
        highest: By bytes, of those settings that take as many, the one of the highest epsilon; empty for ASI.
    """

    measured: list[Option]
    highest: dict[int, Codec] = field(default_factory=dict)

    def options(self) -> list[Option]:
        """Return all settings, from the smallest on."""
        return sorted(self.measured + self._between(), key=lambda option: (option.nbytes, -option.error))

    def learn(self, option: Option, nbytes: int) -> bool:
        """Take in what a setting takes in fact; say if that was not known."""
        if not self.highest or option in self.measured:
            return False
        self.measured.append(replace(option, nbytes=nbytes))
        same = self.highest.setdefault(nbytes, option.codec)
        if _epsilon(option.codec) > _epsilon(same):
            self.highest[nbytes] = option.codec
        return True

    def _between(self) -> list[Option]:
        """Return settings between neighbours of these, with bytes and errors that are interpolated.

        A model of few layers could not come near a budget without. What is lost goes from one to the other by equal
        factors, and so do bytes and error; where more bytes do not mean less error, there is nothing between.
        """
        if not self.highest:
            return []
        lossy = sorted((option for option in self.measured if option.error), key=lambda one: _epsilon(one.codec))
        found, known = [], {_epsilon(option.codec) for option in lossy}
        for low, high in itertools.pairwise(lossy):
            start, end = 1 - _epsilon(self.highest[low.nbytes]), 1 - _epsilon(high.codec)
            if not (low.nbytes < high.nbytes and low.error > high.error and start > end > 0):
                continue
            parts = math.ceil(math.log(high.nbytes / low.nbytes, _STEP))
            for share in (part / parts for part in range(1, parts)):
                lost, nbytes, error = (
                    one ** (1 - share) * other**share
                    for one, other in ((start, end), (low.nbytes, high.nbytes), (low.error, high.error))
                )
                epsilon = round(1 - lost, 6)
                if epsilon not in known:
                    known.add(epsilon)
                    setting = replace(low.codec, epsilon=epsilon)  # type: ignore[call-arg]
                    found.append(Option(setting, round(nbytes), error))
        return found


def trials(codec: Codec, x: Tensor, few: bool) -> Iterator[tuple[Codec, Packed, int]]:
    """Yield the settings of `codec` to try on the activation `x`, the form of `x` to judge each by, and its bytes.

    For ASI the settings are the ranks that HOSVD has at each of `PERPLEXITY_GRID`, and the form is HOSVD's, as
    published: that to which iteration leads. For others they are the shares of `GRID`, by their own forms.

    Args:
        codec: The kind of codec to set.
        x: The activation.
        few: Whether ASI's shares are to be so near to each other that a few sites can meet a budget.

    Raises:
        ConfigError: The codec has nothing to set.
    """
    if isinstance(codec, ASI):
        forms = [(share, _by_hosvd(x, share)) for share in PERPLEXITY_GRID]
        yield from (form for _, form in forms)
        if few:
            for low, high in itertools.pairwise(forms):
                yield from _finer(x, low, high, _HALVINGS)
        return
    if not any(attribute.name == "epsilon" for attribute in fields(codec)):
        raise ConfigError(
            f"budget: {codec!r} has no epsilon or ranks to choose; use Subspace(), HOSVD(), SVD() or ASI()"
        )
    for share in GRID:
        setting = replace(codec, epsilon=share)  # type: ignore[call-arg]
        packed = (setting.tracker() or setting).compress(x)
        yield setting, packed, packed.nbytes


# Settings of ASI: its codec, HOSVD's form of as many ranks, and the bytes of its own.
_Ranks = tuple[ASI, Packed, int]


def _by_hosvd(x: Tensor, share: float) -> _Ranks:
    form = cast(TuckerPacked, HOSVD(share).compress(x))
    return ASI(form.ranks), form, counted(x.shape, form.ranks) * x.element_size()


def _finer(x: Tensor, low: tuple[float, _Ranks], high: tuple[float, _Ranks], halvings: int) -> Iterator[_Ranks]:
    """Yield settings between two shares of variance until bytes go by small steps, or for so many halvings."""
    if halvings and high[1][2] > _STEP * low[1][2]:
        share = 1 - math.sqrt((1 - low[0]) * (1 - high[0]))
        middle = share, _by_hosvd(x, share)
        yield middle[1]
        yield from _finer(x, low, middle, halvings - 1)
        yield from _finer(x, middle, high, halvings - 1)


def tabulate(model: nn.Module, codec: Codec, sites: Sequence[str], run: Callable[[], Tensor]) -> dict[str, Table]:
    """Measure every setting at every site on one batch: bytes, and the error of the weight gradient.

    Where that gradient is zero, as in front of a scale that starts at zero, it does not tell settings apart; the error
    is then that of the activation.

    Args:
        model: The model, its sites converted with `Dense()`.
        codec: The kind of codec to set.
        sites: Names of the converted convolutions and Linear layers.
        run: Runs the model on the batch and returns a scalar loss.

    Returns:
        The settings by site; sites that the loss does not reach have none.
    """
    modules = {name: cast(Twin, model.get_submodule(name)) for name in sites}
    names = {id(module._site): name for name, module in modules.items()}
    inputs: dict[str, list[Tensor]] = {name: [] for name in sites}
    tables: dict[str, Table] = {}
    norms: dict[str, float] = {}

    def keep_input(event: PackEvent) -> None:
        if isinstance(event.kept, DensePacked) and id(event.site) in names:
            inputs[names[id(event.site)]].append(event.kept.x.detach())

    def on_gradient(name: str, grad: Tensor) -> None:
        # Uses of one layer come back in reverse order; the first to come back is tabulated.
        if inputs[name] and name not in tables:
            tables[name], norms[name] = _table(modules[name], codec, inputs[name].pop(), grad, len(sites) <= _FEW)
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
    if isinstance(codec, ASI):
        # Its errors are no shares: sites without a gradient count as if theirs were of the usual size.
        usual = statistics.median([norm for norm in norms.values() if norm] or [1.0])
        for name in (name for name, norm in norms.items() if not norm):
            options = tables[name].measured
            tables[name] = Table([replace(option, error=usual * option.error) for option in options])
    return tables


def _table(module: Twin, codec: Codec, x: Tensor, grad: Tensor, few: bool) -> tuple[Table, float]:
    """Return the settings of one site, and the norm of its weight gradient."""
    grad = grad.reshape(len(x), *grad.shape[grad.dim() - x.dim() + 1 :])
    exact = module.weight_gradient(DensePacked(x), grad)
    norm = float(exact.norm())
    # An activation of zeros loses nothing.
    scale = norm or float(x.float().norm()) or 1.0
    options = [Option(Dense(), x.numel() * x.element_size(), 0.0)]
    # The last setting of as many bytes, of which the first is offered.
    last: dict[int, Codec] = {}
    # The first of those that are no smaller than the activation: of another one they may be.
    beyond: Option | None = None
    with suppress(NotFactorableError):
        for setting, packed, nbytes in trials(codec, x, few):
            if nbytes >= plain_bytes(x) and (beyond is not None or isinstance(codec, ASI)):
                continue
            if nbytes in last:
                last[nbytes] = setting
                continue
            lost = module.weight_gradient(packed, grad) - exact if norm else (packed.dense() - x).float()
            share = float(lost.norm()) / scale
            error = share * (norm or 1.0) if isinstance(codec, ASI) else share**2
            if nbytes >= plain_bytes(x):
                beyond = Option(setting, plain_bytes(x), error)
            else:
                beyond, last[nbytes] = None, setting
                options.append(Option(setting, nbytes, error))
    if beyond is not None:
        options.append(beyond)
        last[beyond.nbytes] = beyond.codec
    return Table(options, {} if isinstance(codec, ASI) else last), norm


def _epsilon(codec: Codec) -> float:
    return cast(float, codec.epsilon)  # type: ignore[attr-defined]


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
