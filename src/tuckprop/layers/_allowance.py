"""Keeps what a model holds near its budget while training changes the activations.

A plan measures each site's settings on one batch and chooses between them. Here the bytes that each form really takes
are noted; where their sum has left the budget, the plan's table is corrected by them and the choice made anew. Where a
forward is about to leave it, the sites that are still to come make up for it, and the one at hand packs again if it is
over. Numbers of elements are read, which the host knows, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from tuckprop.allocation import Option, allocate
from tuckprop.layers._uncompiled import uncompiled

# Shares of the budget: what is aimed at; below what it is short; beyond what settings are changed; beyond what they are
# changed without waiting.
_AIM, _SHORT, _HIGH, _FAR = 0.97, 0.92, 1.02, 1.08

# The share of the budget that a forward may be expected to end with before settings are corrected in it, as they are
# where it will be short, and how far from what the last correction expected.
_OVER, _MOVED = 1.05, 0.02

# Forward passes with fewer elements than this share of the largest, such as an epoch's last batch, say nothing, and
# nothing is expected of them.
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
class Spent:
    """What a site keeps in a forward, in which it may be used several times.

    Attributes:
        nbytes: Bytes of all its forms.
        uses: How often it packed.
        elements: Elements of all activations that it packed.
    """

    nbytes: int = 0
    uses: int = 0
    elements: int = 0

    def add(self, nbytes: int, elements: int) -> None:
        """Count one more form."""
        self.nbytes, self.uses, self.elements = self.nbytes + nbytes, self.uses + 1, self.elements + elements

    def share(self, elements: int) -> int:
        """Return the bytes of a form that is of so many of the elements."""
        return self.nbytes * elements // self.elements

    def whole(self, nbytes: int, elements: int) -> int:
        """Return the bytes of all forms, if one of so many elements takes so many bytes."""
        return nbytes * self.elements // elements

    def is_like(self, elements: int) -> bool:
        """Say whether activations have about as many elements as one of these."""
        usual = self.elements / self.uses
        return _FULL * usual <= elements <= usual / _FULL


@dataclass
class Allowance:
    """What a model may hold; a forward pre-hook of the model, and part of each of its sites.

    Attributes:
        budget: Bytes that the model may hold for backward.
        form_bytes: Bytes of them that the sites' forms may take together.
        sites: Those that have a choice, by name.
        options: Their settings, as the plan measured them.
        chosen: The number of each one's setting.
        spent: What the forms of this forward take so far, by site.
        taken: Bytes of all of them.
        expected: What they take in the end, by the last forward.
        ahead: Bytes of that which are still to come.
        foreseen: Bytes that the model was expected to hold by the last correction in this forward; without one, what
            the last forward held where that was too little, for lack of larger settings; else 0.
        repacked: The last site of this forward whose form was not afforded.
        short: What the last forward held, if too little; else 0.
        void: Whether no conclusion is to be drawn from this forward.
        largest: Most elements of a forward, of those that came lately.
        smaller: Forward passes in a row that had fewer.
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
    spent: dict[str, Spent] = field(default_factory=dict)
    taken: int = 0
    expected: dict[str, Spent] = field(default_factory=dict)
    ahead: int = 0
    foreseen: int = 0
    repacked: str = ""
    short: int = 0
    void: bool = False
    largest: int = 0
    smaller: int = 0
    forwards: int = 0
    took: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    pause: int = 1
    rest: int = 0

    def watch(self, site: Adjustable, options: Sequence[Option], chosen: int) -> None:
        """Take in a site that has a choice."""
        ascending = sorted(range(len(options)), key=lambda number: options[number].nbytes)
        self.sites[site.name], self.options[site.name] = site, [options[number] for number in ascending]
        self.chosen[site.name], self.took[site.name] = ascending.index(chosen), {}

    def add(self, name: str, nbytes: int, elements: int) -> None:
        """Note what a site keeps; nothing that is made again in backward, and so is not held."""
        if elements and torch._C._current_graph_task_id() == -1:
            usual = self.expected.get(name)
            if usual is not None and usual.uses > 1 and name not in self.spent:
                # Its other uses will do as the first.
                self._expect(name, usual.whole(nbytes, elements))
            self.spent.setdefault(name, Spent()).add(nbytes, elements)
            self.taken += nbytes
            if usual is not None:
                self.ahead = max(0, self.ahead - usual.share(elements))

    def affords(self, name: str, nbytes: int, elements: int) -> bool:
        """Say whether a site may keep a form of so many bytes; if not, it has another setting now, to pack again by.

        Where the forward is about to leave the budget, the sites that are still to come get other settings too.
        """
        usual = self.expected.get(name)
        if usual is None or not usual.is_like(elements) or self.void or torch._C._current_graph_task_id() != -1:
            return True
        first = name not in self.spent
        # A first use tells of the site's other ones.
        known, told = (usual.nbytes, usual.whole(nbytes, elements)) if first else (usual.share(elements), nbytes)
        held = self._fixed + self.taken + told + max(0, self.ahead - known)
        if _SHORT * self.budget <= held <= _OVER * self.budget:
            return True
        waiting = [site for site in self.sites if site in self.expected and site not in self.spent and site != name]
        # The last one that packs makes up for what is left, where it has a larger setting.
        last = name in self.sites and first and all(self._now(site).whole for site in waiting)
        if last and held < self.budget and self._now(name).nbytes == self.options[name][-1].nbytes:
            return True
        if abs(held - self.foreseen) < _MOVED * self.budget and not last:
            return True
        again = last or (name in self.sites and first and (held > _OVER * self.budget or name == self.repacked))
        if not self._correct(name, told, self.ahead - known, waiting, again):
            return True
        self.repacked = name
        return False

    def ignore(self) -> None:
        """Draw no conclusion from this forward: an activation of it has no form, as one that is not finite."""
        self.void = True

    def _now(self, name: str) -> Option:
        """Return the setting of a site."""
        return self.options[name][self.chosen[name]]

    @property
    def _fixed(self) -> int:
        """Bytes that the model holds besides forms."""
        return self.budget - self.form_bytes

    @uncompiled
    def __call__(self, model: nn.Module, args: Any) -> None:
        """Start a forward: look at what the one before it took."""
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        spent, void = self.spent, self.void
        self.spent, self.taken, self.void, self.repacked = {}, 0, False, ""
        elements = sum(site.elements for site in spent.values())
        if not void and elements and self._counts(elements):
            self.expected = spent
            self._follow(spent)
        self.foreseen = self.short
        self.ahead = sum(site.nbytes for site in self.expected.values())

    def _counts(self, elements: int) -> bool:
        """Say whether a forward of so many elements says something of those to come."""
        self.smaller = 0 if elements >= _FULL * self.largest else self.smaller + 1
        if self.smaller >= _LONGEST:  # Batches are smaller now, or layers were frozen.
            self.largest, self.smaller = elements, 0
        self.largest = max(self.largest, elements)
        return not self.smaller

    def _follow(self, spent: Mapping[str, Spent]) -> None:
        self.forwards += 1
        for name, number in self.chosen.items():
            self.took[name][number] = (spent[name].nbytes if name in spent else 0, self.forwards)
        held = self._fixed + sum(site.nbytes for site in spent.values())
        self.rest -= 1
        self.short = held if held < _SHORT * self.budget else 0
        if not self.short and held <= _HIGH * self.budget:
            self.pause = 1
        elif self.rest <= 0 or held > _FAR * self.budget:
            self.rest, self.pause = self.pause, min(_LONGEST, 2 * self.pause)
            others = sum(site.nbytes for name, site in spent.items() if name not in self.sites)
            self._choose(list(self.sites), others)

    def _correct(self, name: str, told: int, ahead: int, waiting: Sequence[str], again: bool) -> bool:
        """Choose anew for what is still to come, with the form at hand of so many bytes; say if that one is to change.

        Args:
            name: The site at hand.
            told: Bytes of its form, and of those of its other uses where this is the first.
            ahead: Bytes of the forms of other sites that are still to come.
            waiting: Sites with a choice that are still to come.
            again: Whether the one at hand may be packed again.
        """
        before = self.chosen.get(name)
        if again:
            took, now = self.took[name], self.forwards + 1
            if not self.short or abs(took.get(self.chosen[name], (0, 0))[0] - told) > _MOVED * told:
                # This activation is another: what settings took of those before says less.
                took = {number: entry for number, entry in took.items() if entry[1] == now}
            self.took[name] = took | {self.chosen[name]: (told, now)}
        ahead -= sum(self.expected[site].nbytes for site in waiting)
        taken = self.taken + max(0, ahead) + (0 if again else told)
        self.foreseen = self._fixed + taken + self._choose([*waiting, name] if again else waiting, taken, name)
        return self.chosen.get(name) != before

    def _choose(self, names: Sequence[str], others: int, at_hand: str = "") -> int:
        """Choose settings for these sites, beside so many bytes of forms; return the bytes that they should take."""
        tables = {name: self._corrected(name, name == at_hand) for name in names}
        in_reach = {name: list(table.values()) for name, table in tables.items()}
        # The form at hand, if no other is to come, is measured: nothing is to be expected beyond.
        aim = 1.0 if names == [at_hand] else _AIM
        limit = int(aim * self.budget) - self._fixed - others
        limit = max(limit, sum(min(option.nbytes for option in table) for table in in_reach.values()))
        chosen = allocate(in_reach, limit)
        for name, option in chosen.items():
            self._set(name, next(number for number, entry in tables[name].items() if entry is option), option.nbytes)
        return sum(option.nbytes for option in chosen.values())

    def _corrected(self, name: str, at_hand: bool) -> dict[int, Option]:
        """Return the settings that a site may change to, with the bytes that they are now expected to take."""
        options, took = self.options[name], self.took[name]
        latest = max((when for _, when in took.values()), default=0)
        # What is kept whole says nothing about forms.
        known = sorted(number for number, (_, when) in took.items() if when == latest and not options[number].whole)
        # Of the activation at hand each is tried. For others the next larger one is in reach, however large.
        planned = self._now(name).nbytes
        reach = max(_STRIDE * planned, min((o.nbytes for o in options if o.nbytes > planned), default=0))
        table = {}
        for other, option in enumerate(options):
            if option.nbytes > reach and not at_hand:
                continue
            nbytes, when = took.get(other, (0, -_FRESH))
            if self.forwards - when >= _FRESH:
                nearest = min(known, key=lambda number: abs(number - other), default=None)
                nbytes = option.nbytes
                if nearest is not None and not option.whole:
                    nbytes = round(nbytes * took[nearest][0] / options[nearest].nbytes)
            table[other] = replace(option, nbytes=nbytes)
        return table

    def _set(self, name: str, number: int, nbytes: int) -> None:
        """Give a site a setting that is expected to take so many bytes."""
        if number == self.chosen[name]:
            return
        self.chosen[name] = number
        self.sites[name].choose(self.options[name][number])
        self.took[name][number] = (nbytes, self.forwards)
        if name in self.expected and name not in self.spent:
            self._expect(name, nbytes)

    def _expect(self, name: str, nbytes: int) -> None:
        """Expect so many bytes of a site in this forward."""
        self.ahead += nbytes - self.expected[name].nbytes
        self.expected[name].nbytes = nbytes

    def state(self) -> dict[str, Any]:
        """Return what was learnt, for a checkpoint: plain values, lists and dictionaries."""
        took = {
            name: [[number, nbytes, when] for number, (nbytes, when) in entries.items()]
            for name, entries in self.took.items()
        }
        parts = {part: {name: list(astuple(site)) for name, site in getattr(self, part).items()} for part in _PARTS}
        plain = {name: getattr(self, name) for name in _PLAIN}
        settings = {name: str(self._now(name).codec) for name in self.chosen}
        return plain | parts | {"chosen": dict(self.chosen), "settings": settings, "took": took}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: The sites are others, or their settings.
        """
        if state["chosen"].keys() != self.chosen.keys():
            raise ValueError(f"expected sites {sorted(self.chosen)} in the budget, got {sorted(state['chosen'])}")
        for name, number in state["chosen"].items():
            known = str(self.options[name][number].codec) if number < len(self.options[name]) else "no such setting"
            if known != (saved := state.get("settings", {}).get(name, "a setting of an earlier version")):
                raise ValueError(
                    f"{name}: setting {number} of the budget is {known} here, and {saved} in the checkpoint; convert "
                    "by the plan that it was trained with (Plan.to_json, Plan.from_json), or leave this state out"
                )
        for name, number in state["chosen"].items():
            if number != self.chosen[name]:
                self.chosen[name] = number
                self.sites[name].choose(self.options[name][number])
        for name in _PLAIN:
            setattr(self, name, state[name])
        for part in _PARTS:
            setattr(self, part, {name: Spent(*numbers) for name, numbers in state[part].items()})
        self.took = {name: {n: (nbytes, when) for n, nbytes, when in rows} for name, rows in state["took"].items()}


# Of the fields, those that a later step depends on; the others are set when a forward starts.
_PLAIN = ("short", "void", "largest", "smaller", "forwards", "pause", "rest")
_PARTS = ("spent", "expected")
