"""How much of a network a run trains and compresses, in words for tables and plots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Depth:
    """Which layers are trained.

    Attributes:
        last: So many of the last; None for all, or where `paper` or `only` says it.
        paper: The paper's list of that name, 5 or 10 layers; None without one.
        only: Names of the modules that alone are trained; empty where none are named.
    """

    last: int | None = None
    paper: int | None = None
    only: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Depth":
        """Return that of a record's settings; older records know of no lists and no modules."""
        return cls(settings["last"], settings.get("paper_layers"), tuple(settings.get("train_only") or ()))

    @property
    def number(self) -> str:
        """What tells it apart beside a point of a plot, such as "4" or "all"."""
        if self.only:
            return str(self)
        number = self.last or self.paper
        return "all" if number is None else str(number)

    @property
    def order(self) -> tuple[bool, int]:
        """Key to sort by: from few layers to all."""
        number = self.last or self.paper
        return number is None and not self.only, number or 0

    def __str__(self) -> str:
        if self.only:
            return ", ".join(self.only)
        if self.paper is not None:
            return f"paper's {self.paper}"
        return "all" if self.last is None else f"last {self.last}"
