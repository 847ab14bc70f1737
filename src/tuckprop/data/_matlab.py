"""Read MATLAB's files (.mat)."""

from pathlib import Path
from typing import Any

from tuckprop.errors import ConfigError, DataError


def read_mat(path: Path, *names: str) -> list[Any]:
    """Return variables of a file, without the dimensions of size 1 that MATLAB adds.

    Args:
        path: The file.
        names: Of the variables.

    Raises:
        ConfigError: scipy is not installed.
        DataError: The file is missing or damaged, or lacks a variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ConfigError(f"reading {path.name} needs scipy ({error}): pip install 'tuckprop[cli]'") from error
    try:
        found = loadmat(path, squeeze_me=True, variable_names=names)
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}; fetch it again") from error
    absent = [name for name in names if name not in found]
    if absent:
        raise DataError(f"{path}: expected the variables {', '.join(names)}, {', '.join(absent)} is missing")
    return [found[name] for name in names]
