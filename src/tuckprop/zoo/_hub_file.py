"""The file that PyTorch's hub keeps of an address: one that cannot be read must not be kept for ever."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch

from tuckprop.errors import DataError


@contextmanager
def dropping_damaged(url: str) -> Iterator[None]:
    """Around what loads `url` with torch.hub: remove the file where it is there and cannot be loaded.

    torch.hub takes a download that the server cut short for a whole file, where no hash says otherwise, and then finds
    it in its cache each time.

    Args:
        url: The address.

    Raises:
        DataError: The file could not be loaded, and is removed.
        Exception: Whatever else was raised within.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlsplit(url).path))
    try:
        yield
    except Exception as error:  # a damaged file may raise anything
        if not file.is_file():
            raise
        file.unlink()
        raise DataError(
            f"{file.name} was cut short or damaged, and is removed from {file.parent}; the next try fetches it anew"
        ) from error
