"""Where the test data that is not in the repository is."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with cifar10/ and mcunet-in1/, beside the repository or named by TUCKPROP_TEST_DATA."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("TUCKPROP_TEST_DATA", beside))
    if not (folder / "cifar10").is_dir() or not (folder / "mcunet-in1").is_dir():
        pytest.skip(f"no test data at {folder}; set TUCKPROP_TEST_DATA to a folder with cifar10/ and mcunet-in1/")
    return folder
