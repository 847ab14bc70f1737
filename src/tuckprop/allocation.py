"""Divide bytes between sites of which each has a few settings, so that the summed error is near its least."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuckprop.codecs import Codec, Dense
from tuckprop.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One setting of one site, on the calibration batch.

    Attributes:
        codec: The setting; `Dense()` for the activation as it is.
        nbytes: Bytes it keeps.
        error: Squared Frobenius error of the weight gradient, over the squared norm of the exact one; for ASI the
            Frobenius error itself, which its paper calls perplexity. Where the exact gradient is zero, that of
            the activation.
    """

    codec: Codec
    nbytes: int
    error: float

    @property
    def whole(self) -> bool:
        """Whether the activation is kept as it is; a form may lose nothing too, and is a form all the same."""
        return isinstance(self.codec, Dense)


def allocate(tables: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Choose one option a site so that bytes stay within the budget and the summed error is near its least.

    Every site starts with its smallest option, and bytes go to the steps along the convex hulls of the sites' options
    that save the most error a byte, until one does not fit; what is left over buys the best single upgrades. Exact on
    the hulls.

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

    hulls = {site: _hull(options) for site, options in tables.items()}
    chosen = {site: hull[0] for site, hull in hulls.items()}
    left = budget - least
    steps = [(_gain(*step), site, *step) for site, hull in hulls.items() for step in itertools.pairwise(hull)]
    # Along a hull gains fall, so that each site's steps stay in order.
    for _, site, before, after in sorted(steps, key=lambda step: -step[0]):
        left -= after.nbytes - before.nbytes
        if left < 0:
            break
        chosen[site] = after
    while True:
        spare = budget - sum(option.nbytes for option in chosen.values())
        upgrades = [
            (_gain(chosen[site], option), site, option)
            for site, options in tables.items()
            for option in options
            if option.error < chosen[site].error and option.nbytes - chosen[site].nbytes <= spare
        ]
        if not upgrades:
            return chosen
        _, site, option = max(upgrades, key=lambda upgrade: upgrade[0])
        chosen[site] = option


def _gain(before: Option, after: Option) -> float:
    """Return the error that a byte saves."""
    return (before.error - after.error) / max(1, after.nbytes - before.nbytes)


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of error over bytes, from the smallest on to the least error."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.error)):
        if hull and option.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


__all__ = ["Option", "allocate"]
