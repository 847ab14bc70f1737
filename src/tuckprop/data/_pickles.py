"""Read CIFAR's own files, which are pickles, without running what a pickle may ask for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tuckprop.errors import DataError

# How numpy rebuilds an array, under whichever name the writing version had for it.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into old pickles: `_codecs.encode(text, "latin1")`."""
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle of numbers, strings and numpy arrays.

    Args:
        path: The file.

    Returns:
        The dictionary, its keys as str.

    Raises:
        DataError: The file is missing, damaged, no dictionary, or asks for anything else than arrays.
    """
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: cannot be read as a CIFAR file: {error}; fetch it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a dictionary, as CIFAR's files hold, got a {type(found).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
