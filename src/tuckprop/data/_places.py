"""Where a data set's files are, and what to do where they are not."""

import importlib
import os
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tuckprop.errors import ConfigError, DataError
from tuckprop.zoo._torchvision import import_torchvision

# No torchvision, no network, no permission, a download cut short.
_FAILURES = (ImportError, ConfigError, OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Place:
    """A data set's files.

    Attributes:
        title: The data set's name, for error texts.
        cache: Name of its folder in the user's cache folder.
        inner: The folder that its archives unpack to, perhaps in another.
        marks: Files and folders that must be in there.
        source: What to fetch from where, for error texts.
        reader: The class in torchvision.datasets that downloads it, if any.
        arguments: Of that class.
        archives: Addresses of archives to download and unpack besides. Without them and a reader nothing can be
            downloaded.
    """

    title: str
    cache: str
    inner: str
    marks: tuple[str, ...]
    source: str
    reader: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    archives: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that the data set is in where no path is given."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuckprop" / self.cache

    def find(self, path: Path | None) -> Path:
        """Return the folder with the files.

        Args:
            path: That folder, or one that holds what the archives unpack to. None stands for the user's cache folder,
                into which torchvision downloads what is not there.

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
        if self._complete(root) is not None:
            return root
        if self.reader is None and not self.archives:
            raise DataError(f"{self.title}: nothing is at {root}, and it has to be fetched by hand; {self.help()}")
        try:
            import_torchvision()
            root.mkdir(parents=True, exist_ok=True)
            if self.reader is not None:
                reader = getattr(importlib.import_module("torchvision.datasets"), self.reader)
                reader(str(root), download=True, **self.arguments)
            for address in self.archives:
                importlib.import_module("torchvision.datasets.utils").download_and_extract_archive(address, str(root))
        except _FAILURES as error:
            raise DataError(f"{self.title}: the download into {root} failed ({error}); {self.help()}") from error
        return root

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
