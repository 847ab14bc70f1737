"""Ways to stop a run early."""

from collections.abc import Callable


def after(count: int) -> Callable[[], bool]:
    """Return a function that says so when it has been asked `count` times."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= count
