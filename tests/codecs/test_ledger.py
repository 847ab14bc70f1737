"""The ledger of a captured forward: what each activation lost, in the order in which they were packed."""

from typing import Any

import pytest
import torch

from tuckprop.codecs._ledger import Entry, Ledger, open_ledger, opened
from tuckprop.linalg.energy import Energy, Rule


class Site:
    """A tracker that notes what it is told."""

    def limits(self, key: tuple[int, ...]) -> tuple[float, float]:
        return 0.0, 0.5

    def replayed(self, key: tuple[int, ...], bases: Any, lost: float) -> None:
        self.told = (key, bases, lost)


def test_a_ledger_gives_each_activation_the_share_that_it_lost() -> None:
    ledger, sites = Ledger(), [Site(), Site(), Site()]
    assert open_ledger() is None
    with opened(ledger):
        assert open_ledger() is ledger
        ledger.note(sites[0], (1,), {}, Energy(torch.tensor(4.0)), torch.tensor(3.0))
        # 100 elements of a norm whose variance is half of what it was divided by.
        norm = torch.tensor(0.5, dtype=torch.float64)
        ledger.note(sites[1], (2,), {}, Energy(norm, Rule(100, 2.0)), torch.tensor(40.0))
        ledger.note(sites[2], (3,), {}, Energy(torch.tensor(0.0)), torch.tensor(0.0))
    assert open_ledger() is None
    first, second, third = ledger.lost(ledger.numbers().tolist())
    assert first == 0.25
    assert second == pytest.approx(0.2)
    assert third != third
    assert isinstance(ledger.entries[0], Entry)
