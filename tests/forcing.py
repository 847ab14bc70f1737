"""Ways to force a path through the code that the cost model or the byte count would not take by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from tuckprop.layers import _contraction, _twin
from tuckprop.layers._route import Route

ROUTES = ("factored", "reduced", "dense")


@contextmanager
def forced_packing() -> Iterator[None]:
    """Keep every activation in the codec's form, whether or not that is smaller, or held by someone else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_twin, "may_shrink", lambda codec, shape: True)
        patch.setattr(_twin, "is_smaller", lambda packed, x: True)
        patch.setattr(_twin, "holder", lambda x: None)
        yield


@contextmanager
def forced_route(chosen: str) -> Iterator[None]:
    """Take one route to a convolution's weight gradient, and fail if it was not the one that was gone.

    The factored route needs a factor on every spatial axis.
    """
    taken: list[str] = []

    with pytest.MonkeyPatch.context() as patch:

        def watch(name: str) -> None:
            original = getattr(_contraction, f"{name}_route")

            def watched(*args: object) -> Tensor:
                taken.append(name)
                return original(*args)

            patch.setattr(_contraction, f"{name}_route", watched)

        for name in ROUTES:
            watch(name)
        patch.setattr(_contraction, "cheapest_route", lambda *args: Route[chosen.upper()])
        yield
    assert taken, "no weight gradient was computed"
    assert taken[0] == chosen, f"expected the {chosen} route, went {taken}"
    if chosen == "factored":
        assert set(taken) == {"factored"}
