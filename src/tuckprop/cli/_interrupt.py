"""Ctrl-C asks a run to stop after its step; a second one ends it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Catch the first SIGINT or SIGTERM while the context is open.

    Yields:
        A function that says whether one came.
    """
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        for kind, handler in before.items():
            signal.signal(kind, handler)

    before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
