"""The plain text lists that data sets come with, one image a line."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tuckprop.data.folder import FilePictures
from tuckprop.errors import DataError


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Return the words of every line that is not empty.

    Args:
        path: A text file.
        columns: How many words a line must have.

    Raises:
        DataError: The file is missing or empty, no text, or a line has another number of words.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of images: {error}") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in rows:
        if len(words) != columns:
            raise DataError(
                f"{path}, line {number}: expected {columns} words, got {' '.join(words)!r}; fetch the file again"
            )
    if not rows:
        raise DataError(f"{path}: expected one image a line, the file is empty; fetch it again")
    return [words for _, words in rows]


def read_number(text: str, path: Path, what: str, low: int, high: int) -> int:
    """Return the number that `text` is.

    Args:
        text: A word of a list.
        path: The list.
        what: What the number stands for, for the error's text.
        low: Smallest that it may be.
        high: Largest that it may be.

    Raises:
        DataError: It is no number, or out of range.
    """
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        raise DataError(f"{path}: {what}: expected a number from {low} to {high}, got {text!r}; fetch the file again")
    return number


def require_files(files: Sequence[Path], listed: Path) -> None:
    """Check that every file is there, so that none is missed in the middle of a run.

    Args:
        files: The files.
        listed: The list, or folder, that they come from.

    Raises:
        DataError: Some are not there; the text has the first.
    """
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"{absent[0]} is missing, and {len(absent) - 1} more of the {len(files)} files that belong to {listed}; "
            "unpack the data set again"
        )


def list_pictures(root: Path, names: Sequence[str], labels: Tensor, listed: Path) -> FilePictures:
    """Return listed images, all of which are there.

    Args:
        root: Where they are.
        names: Their names, seen from there.
        labels: int64, [images].
        listed: The list that names them.

    Raises:
        DataError: The list is empty, or an image is missing.
    """
    if not names:
        raise DataError(f"{listed}: expected a list of images, it has none of this part; fetch it again")
    require_files([root / name for name in names], listed)
    return FilePictures(names, labels, lambda name: (root / name).read_bytes(), root, None)
