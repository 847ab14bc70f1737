"""Divide bytes between sites of which each has a few settings, so that the summed error is near its least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuckprop.codecs import Codec, Dense
from tuckprop.errors import ConfigError


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

    @property
    def setting(self) -> Codec:
        """What a site gets: where nothing is lost, the activation is kept as it is."""
        return self.codec if self.error else Dense()


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
    for _ in range(60):
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


__all__ = ["Option", "allocate"]
