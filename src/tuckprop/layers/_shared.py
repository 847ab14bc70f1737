"""One tensor that several layers read is packed once."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from tuckprop.codecs import Packed


class Choice(NamedTuple):
    """What to keep of a tensor.

    Attributes:
        kept: The packed form, or None where the tensor itself is kept.
        paper_count: Elements that the codec's paper counts, whichever is kept.
    """

    kept: Packed | None
    paper_count: int


class _Remembered:
    """A choice whose tensors live only as long as a graph holds them: what nobody keeps is not kept alive here."""

    def __init__(self, choice: Choice) -> None:
        self._paper_count = choice.paper_count
        self._kind: Any = None
        if choice.kept is not None:
            self._kind, self._meta = type(choice.kept), choice.kept.meta
            self._references = [TensorWeakRef(tensor) for tensor in choice.kept.tensors()]

    def recall(self) -> Choice | None:
        """Return the choice, or None if its tensors are gone."""
        if self._kind is None:
            return Choice(None, self._paper_count)
        tensors = [reference() for reference in self._references]
        if any(tensor is None for tensor in tensors):
            return None
        return Choice(self._kind.rebuild(tensors, self._meta), self._paper_count)


# The tensor's version and, by codec, the choice. An entry lives as long as the tensor itself.
_choices: WeakIdKeyDictionary = WeakIdKeyDictionary()


def uncast(device: str) -> AbstractContextManager[Any]:
    """Return a context in which nothing is cast; where autocast is off there is nothing to enter."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def shared(x: Tensor, codec: Callable[[], Hashable], choose: Callable[[Tensor], Choice]) -> Choice:
    """Return the choice for `x` under `codec`: that made for another layer, if `x` has not changed since, or a new one.

    Args:
        x: The activation.
        codec: Returns what the choice depends on besides `x`; `choose` may change it.
        choose: Makes the choice; called without gradients and without autocast.

    Returns:
        The choice.
    """
    version, made = _choices.get(x, (-1, {}))
    if version != x._version:
        made = {}
        _choices[x] = (x._version, made)
    remembered: _Remembered | None = made.get(codec())
    choice = None if remembered is None else remembered.recall()
    if choice is None:
        with torch.no_grad(), uncast(x.device.type):
            choice = choose(x.detach())
        made[codec()] = _Remembered(choice)
    return choice
