"""Where a data set's files are, and what to do where they are not.

The addresses are those that public code uses; none was tried, as this was built without a network. Downloads are tested
with servers on the same machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tuckprop.data._archive import Archive
from tuckprop.data._download import download, moving
from tuckprop.errors import DataError


@dataclass(frozen=True)
class Place:
    """A data set's files.

    Attributes:
        title: The data set's name, for error texts.
        cache: Name of its folder in the user's cache folder.
        inner: The folder that its archives unpack to, perhaps in another.
        marks: Files and folders that must be in there.
        source: What to fetch from where, for error texts.
        archives: The same files, for a download. Without them nothing can be downloaded.
    """

    title: str
    cache: str
    inner: str
    marks: tuple[str, ...]
    source: str
    archives: tuple[Archive, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that the data set is in where no path is given."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuckprop" / self.cache

    def find(self, path: Path | None) -> Path:
        """Return the folder with the files.

        Args:
            path: That folder, or one that holds what the archives unpack to. None stands for the user's cache folder,
                into which what is not there is downloaded.

        Raises:
            DataError: Files are missing, and cannot be downloaded; the text says what to fetch.
        """
        root = self.download() if path is None else path
        if not root.is_dir():
            raise DataError(f"{self.title}: expected a folder at {root}, there is none; {self.help()}")
        found = self._complete(root)
        if found is not None:
            return found
        nearest = next((folder for folder in self._candidates(root) if folder.is_dir()), root)
        absent = [mark for mark in self.marks if not (nearest / mark).exists()]
        raise DataError(f"{self.title}: {nearest} lacks {', '.join(absent)}; {self.help()}")

    def download(self) -> Path:
        """Return the cache folder, with the files in it.

        Raises:
            DataError: They are not there and cannot be downloaded; the text says what to fetch.
        """
        root = self.folder
        try:
            if self._complete(root) is not None and not moving(root):
                return root
            if self.archives:
                download(root, self.archives, lambda folder: self._complete(folder) is not None)
                return root
        except (OSError, RuntimeError) as error:  # the latter where a file system has no locks
            raise DataError(f"{self.title}: the download into {root} failed ({error}); {self.help()}") from error
        raise DataError(f"{self.title}: nothing is at {root}, and it has to be fetched by hand; {self.help()}")

    def help(self) -> str:
        """Return what a user can do: what to fetch, from where, and where to put it."""
        return (
            f"fetch {self.source}, unpack it, and pass --data-path the folder with {self.inner} in it, or put that "
            f"into {self.folder}"
        )

    def _candidates(self, root: Path) -> list[Path]:
        """Return where the files may be: the whole of `inner` under `root`, or the rest of it."""
        parts = PurePosixPath(self.inner).parts
        return [root.joinpath(*parts[number:]) for number in range(len(parts) + 1)]

    def _complete(self, root: Path) -> Path | None:
        for folder in self._candidates(root):
            if all((folder / mark).exists() for mark in self.marks):
                return folder
        return None
