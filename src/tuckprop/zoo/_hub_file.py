"""The file that PyTorch's hub keeps of an address: one that cannot be read must not be kept for ever."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch

from tuckprop.errors import DataError

# What is no fault of the file: too many are open, the disk fails, it may not be read.
_NOT_THE_FILES = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOMEM}


@contextmanager
def dropping_damaged(url: str) -> Iterator[None]:
    """Around what loads `url` with torch.hub: remove the file where it is there and cannot be loaded.

    torch.hub takes a download that the server cut short for a whole file, where no hash says otherwise, and then finds
    it in its cache each time.

    Args:
        url: The address.

    Raises:
        DataError: The file could not be loaded, and is removed, or is to be.
        Exception: Whatever else was raised within.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlsplit(url).path))
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if not file.is_file() or (isinstance(error, OSError) and error.errno in _NOT_THE_FILES):
            raise
        damaged = f"{file.name} was cut short or damaged"
        try:
            # Of a link, what it leads to.
            file.resolve().unlink()
        except OSError as failure:
            raise DataError(f"{damaged}, and cannot be removed ({failure}): remove {file}") from error
        raise DataError(f"{damaged}, and is removed from {file.parent}; the next try fetches it anew") from error
