"""State by activation size, of the sizes that came last: a text of each length must not leave bases behind for ever."""

from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

# An activation's sizes without the batch.
Key = tuple[int, ...]

# Sizes that a site has state for, at most.
MOST_SIZES = 8


class Recent(dict[_K, _V]):
    """A dictionary that forgets the key that was set longest ago when there are more than `MOST_SIZES`."""

    def __setitem__(self, key: _K, value: _V) -> None:
        """Set the value, as the last one."""
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > MOST_SIZES:
            del self[next(iter(self))]
