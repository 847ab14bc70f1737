"""What tracked bases lose while a CUDA graph is replayed: numbers that the graph computes, and sites that judge them.

A graph runs without the host, so no site can look at what its bases lose. While one is captured, each site notes where
the graph will leave its numbers, and whoever replays the graph reads all of them at once, and asks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tuckprop.codecs._recent import Key
from tuckprop.linalg.energy import Energy


class Replayed(Protocol):
    """A tracker whose bases stay while a graph is replayed."""

    def limits(self, key: Key) -> tuple[float, float]:
        """Return the least and the most of the energy that the bases for activations of this key should lose."""

    def replayed(self, key: Key, bases: Mapping[int, Tensor], lost: float) -> None:
        """Note that activations were packed with these bases, the last of which lost this share."""


@dataclass(frozen=True)
class Entry:
    """One activation that a graph packs.

    Attributes:
        tracker: Of its site.
        key: What the tracker knows its bases by.
        bases: By axis; they are kept, as a graph reads them where they are.
        energy: Of the activation.
        kept: Energy of its core, a scalar.
    """

    tracker: Replayed
    key: Key
    bases: Mapping[int, Tensor]
    energy: Energy
    kept: Tensor


@dataclass
class Ledger:
    """The activations that a graph packs."""

    entries: list[Entry] = field(default_factory=list)

    def note(self, tracker: Replayed, key: Key, bases: Mapping[int, Tensor], energy: Energy, kept: Tensor) -> None:
        """Add an activation; see `Entry`."""
        self.entries.append(Entry(tracker, key, bases, energy, kept))

    def numbers(self) -> Tensor:
        """Return both numbers of every activation in one tensor, float64 [2 n], for `lost`; there is at least one."""
        # Those of one type together, as a cast of each would be a kernel of its own.
        return torch.cat([torch.stack(list(same.values())).double() for same in self._by_type()])

    def lost(self, numbers: list[float]) -> list[float]:
        """Return the share of the energy that each activation lost, given what is in `numbers`."""
        places = [place for same in self._by_type() for place in same]
        found = dict(zip(places, numbers, strict=True))
        return [entry.energy.rule.lost(found[i, 0], found[i, 1]) for i, entry in enumerate(self.entries)]

    def _by_type(self) -> list[dict[tuple[int, int], Tensor]]:
        """Return the numbers by their place, those of one type in one dictionary."""
        groups: dict[torch.dtype, dict[tuple[int, int], Tensor]] = {}
        for i, entry in enumerate(self.entries):
            for j, number in enumerate((entry.energy.number, entry.kept)):
                groups.setdefault(number.dtype, {})[i, j] = number
        return list(groups.values())


_open: list[Ledger] = []


@contextmanager
def opened(ledger: Ledger) -> Iterator[None]:
    """Note every activation that is packed while the context is open."""
    _open.append(ledger)
    try:
        yield
    finally:
        _open.remove(ledger)


def open_ledger() -> Ledger | None:
    """Return the ledger to note activations in, if there is one."""
    return _open[-1] if _open else None
