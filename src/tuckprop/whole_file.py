"""Files that are whole or absent: a crash at any moment leaves the one before or the new one, never half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its name once it is whole and on the disk.

    Args:
        path: The file; its folder is made where there is none.

    Yields:
        A file of bytes, in the same folder; it is gone again where writing fails.

    Raises:
        OSError: It cannot be written, such as to a full disk; it names the file.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # Some network mounts know no such thing.
                os.fsync(folder)
        finally:
            os.close(folder)


__all__ = ["whole_file"]
