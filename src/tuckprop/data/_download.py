"""Whole downloads or none: all is fetched and unpacked beside the folder that it is for, then moved in."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from filelock import FileLock  # PyTorch depends on it

from tuckprop.data._archive import Archive
from tuckprop.errors import DataError

_UNPACKING, _WHOLE = "unpacking", "whole"


def moving(root: Path) -> bool:
    """Return whether what was downloaded for `root` is on its way in, so that some of it is still missing there."""
    return (_scratch(Path(os.path.realpath(root))) / _WHOLE).exists()


def download(root: Path, archives: Collection[Archive], complete: Callable[[Path], bool]) -> None:
    """Put the contents of all archives into a folder; what is there already stays as it is.

    The work is done in a sibling of the folder, NAME.partial. Archives that are whole stay there until all is done, for
    the next try after one that failed. Other processes that want the same wait.

    Args:
        root: The folder. It need not be there.
        archives: What to fetch and unpack.
        complete: Whether a folder has the data set's files.

    Raises:
        DataError: Something cannot be fetched or unpacked, or is another data set.
        OSError: The disk is full, or may not be written to.
    """
    # The folder may be a link to another disk. What is beside its target can be moved there at once.
    root = Path(os.path.realpath(root))
    scratch = _scratch(root)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(scratch.with_suffix(".lock")):
        if complete(root) and not moving(root):
            return
        scratch.mkdir(exist_ok=True)
        kept = {_WHOLE, *(archive.name for archive in archives)}
        try:
            if not moving(root):
                # A run that was killed cleans nothing up.
                _keep_only(kept, scratch)
                _unpack_all(archives, scratch, complete)
            _move_in(scratch / _WHOLE, root)
            # The mark of an unfinished move goes last.
            _keep_only({_WHOLE}, scratch)
            shutil.rmtree(scratch)
        except BaseException:
            with contextlib.suppress(OSError):
                _keep_only(kept, scratch)
                if not any(scratch.iterdir()):
                    scratch.rmdir()
            raise


def _scratch(root: Path) -> Path:
    return root.with_name(f"{root.name}.partial")


def _unpack_all(archives: Collection[Archive], scratch: Path, complete: Callable[[Path], bool]) -> None:
    for archive in archives:
        archive.fetch(scratch)
    tree = scratch / _UNPACKING
    tree.mkdir()
    for archive in archives:
        archive.unpack(scratch, tree)
    if not complete(tree):
        names = ", ".join(archive.name for archive in archives)
        raise DataError(f"expected the data set's files in {names}, other files are in there")
    tree.rename(scratch / _WHOLE)


def _move_in(source: Path, target: Path) -> None:
    """Move what `target` lacks into it."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        goal = target / entry.name
        if entry.is_dir() and goal.is_dir():
            _move_in(entry, goal)
        elif not os.path.lexists(goal):
            _put(entry, goal)


def _put(source: Path, goal: Path) -> None:
    """Move a file or a folder to a place that is free, whole or not at all file by file."""
    try:
        source.rename(goal)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder within may be a link to another disk.
        if source.is_dir():
            _move_in(source, goal)
        else:
            partial = goal.with_name(f"{goal.name}.partial")
            shutil.copy2(source, partial)
            partial.replace(goal)


def _keep_only(names: Collection[str], folder: Path) -> None:
    for entry in list(folder.iterdir()):
        if entry.name in names:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
