"""Keeps what a model holds near its budget while training changes the activations.

A plan measures each site's settings on one batch and chooses between them. Here the bytes that each form really takes
are noted; where their sum has left the budget, the plan's table is corrected by them and the choice made anew. Numbers
of elements are read, which the host knows, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from tuckprop.allocation import Option, allocate
from tuckprop.layers._uncompiled import uncompiled

# Shares of the budget: what is aimed at, between what bounds nothing is changed, and beyond what nothing is waited for.
_AIM, _LOW, _HIGH, _FAR = 0.97, 0.93, 1.02, 1.08

# Forward passes with fewer elements than this share of the largest, such as an epoch's last batch, say nothing.
_FULL = 0.9

# Forward passes between two choices, at most, where the last one did not help.
_LONGEST = 8

# How many times the bytes of a site's setting its next one may have, by the plan: what one takes says little of others
# that are far from it.
_STRIDE = 1.5

# Forward passes for which what a setting took is believed.
_FRESH = 20


class Adjustable(Protocol):
    """A site."""

    name: str

    def choose(self, option: Option) -> None:
        """Keep activations by this setting from now on."""


@dataclass
class Allowance:
    """What a model may hold; a forward pre-hook of the model, and part of each of its sites.

    Attributes:
        budget: Bytes that the model may hold for backward.
        form_bytes: Bytes of them that the sites' forms may take together.
        sites: Those that have a choice, by name.
        options: Their settings, as the plan measured them.
        chosen: The number of each one's setting.
        spent: Bytes of the forms of this forward, by site.
        elements: Elements of the activations that they are of.
        largest: Most elements of a forward.
        forwards: Forward passes so far.
        took: What each setting took, and in which forward.
        pause: Forward passes from the last choice to the next.
        rest: Those of them that are left.
    """

    budget: int
    form_bytes: int
    sites: dict[str, Adjustable] = field(default_factory=dict)
    options: dict[str, Sequence[Option]] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    elements: int = 0
    largest: int = 0
    forwards: int = 0
    took: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    pause: int = 1
    rest: int = 0

    def watch(self, site: Adjustable, options: Sequence[Option], chosen: int) -> None:
        """Take in a site that has a choice."""
        self.sites[site.name], self.options[site.name], self.chosen[site.name] = site, options, chosen
        self.took[site.name] = {}

    def add(self, name: str, nbytes: int, elements: int) -> None:
        """Note what a site keeps; nothing that is made again in backward, and so is not held."""
        if torch._C._current_graph_task_id() == -1:
            self.spent[name] = self.spent.get(name, 0) + nbytes
            self.elements += elements

    def ignore(self) -> None:
        """Draw no conclusion from this forward: an activation of it has no form, as one that is not finite."""
        self.elements = -(2**62)

    @uncompiled
    def __call__(self, model: nn.Module, args: Any) -> None:
        """Start a forward: look at what the one before it took."""
        if not (model.training and torch.is_grad_enabled()) or torch._C._current_graph_task_id() != -1:
            return
        spent, elements = self.spent, self.elements
        self.spent, self.elements = {}, 0
        if elements > 0 and elements >= _FULL * self.largest:
            self.largest = max(self.largest, elements)
            self._follow(spent)

    def _follow(self, spent: Mapping[str, int]) -> None:
        self.forwards += 1
        for name, number in self.chosen.items():
            self.took[name][number] = (spent.get(name, 0), self.forwards)
        held = self.budget - self.form_bytes + sum(spent.values())
        self.rest -= 1
        if _LOW * self.budget <= held <= _HIGH * self.budget:
            self.pause = 1
        elif self.rest <= 0 or held > _FAR * self.budget:
            self.rest, self.pause = self.pause, min(_LONGEST, 2 * self.pause)
            self._choose(spent)

    def _choose(self, spent: Mapping[str, int]) -> None:
        others = sum(nbytes for name, nbytes in spent.items() if name not in self.sites)
        limit = int(_AIM * self.budget) - (self.budget - self.form_bytes) - others
        tables = {name: self._corrected(name) for name in self.sites}
        in_reach = {name: list(table.values()) for name, table in tables.items()}
        limit = max(limit, sum(min(option.nbytes for option in table) for table in in_reach.values()))
        for name, option in allocate(in_reach, limit).items():
            self._set(name, next(number for number, entry in tables[name].items() if entry is option))

    def _corrected(self, name: str) -> dict[int, Option]:
        """Return the settings that a site may change to, with the bytes that they are now expected to take."""
        options, took, number = self.options[name], self.took[name], self.chosen[name]
        planned = options[number].nbytes
        # What is kept whole says nothing about forms.
        ratio = took[number][0] / planned if planned and options[number].error else 1.0
        # The next larger one is in reach, however large.
        reach = max(_STRIDE * planned, min((o.nbytes for o in options if o.nbytes > planned), default=0))
        table = {}
        for other, option in enumerate(options):
            if option.nbytes > reach:
                continue
            nbytes, when = took.get(other, (0, -_FRESH))
            if self.forwards - when >= _FRESH:
                nbytes = round(option.nbytes * ratio) if option.error else option.nbytes
            table[other] = replace(option, nbytes=nbytes)
        return table

    def _set(self, name: str, number: int) -> None:
        if number != self.chosen[name]:
            self.chosen[name] = number
            self.sites[name].choose(self.options[name][number])

    def state(self) -> dict[str, Any]:
        """Return what was learnt, for a checkpoint: plain values, lists and dictionaries."""
        took = {
            name: [[number, nbytes, when] for number, (nbytes, when) in entries.items()]
            for name, entries in self.took.items()
        }
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return numbers | {"chosen": dict(self.chosen), "spent": dict(self.spent), "took": took}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: The sites are others.
        """
        if state["chosen"].keys() != self.chosen.keys():
            raise ValueError(f"expected sites {sorted(self.chosen)} in the budget, got {sorted(state['chosen'])}")
        for name, number in state["chosen"].items():
            self._set(name, number)
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.spent = dict(state["spent"])
        self.took = {name: {n: (nbytes, when) for n, nbytes, when in rows} for name, rows in state["took"].items()}


_NUMBERS = ("elements", "largest", "forwards", "pause", "rest")
