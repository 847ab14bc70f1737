"""What every test shares: one thread, one seed, hypothesis settings, and ways to force a path through the code."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.forcing import ROUTES, forced_packing, forced_route

# Fixed examples for a suite that says the same thing each time; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile(
    "fixed", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("fixed"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Let the processes of pytest-xdist share the cores instead of fighting over them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def forced() -> Iterator[None]:
    """Keep every activation in the codec's form, whether or not that is smaller."""
    with forced_packing():
        yield


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, forced: None) -> Iterator[str]:
    """Force one way to a convolution's weight gradient after the other."""
    with forced_route(request.param):
        yield request.param
