"""A dictionary that refuses duplicates and, on a miss, lists what it knows."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tuckprop.errors import ConfigError

V = TypeVar("V")


class Registry(Generic[V]):
    """Named things of one kind.

    Example:
        >>> shapes: Registry[int] = Registry("shape")
        >>> shapes.add("triangle", 3)
        3
        >>> shapes["triangle"]
        3
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, V] = {}

    def add(self, name: str, entry: V) -> V:
        """Register `entry` under `name` and return it.

        Raises:
            ConfigError: `name` is taken.
        """
        if name in self._entries:
            raise ConfigError(f"{self.kind} {name!r} is registered already, as {self._entries[name]!r}")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[V], V]:
        """Return a decorator that registers what it decorates under `name`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> V:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self._entries) or "none"
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
