"""A file that a data set is published in: fetched whole or not at all, checked, unpacked."""

import hashlib
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch

from tuckprop.errors import DataError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A tar or zip file, or a plain file, on its makers' server.

    Attributes:
        address: Where it is.
        md5: The MD5 sum of the whole file, in hexadecimal digits.
        folder: Where its contents, or the plain file, go in the data set's folder.
    """

    address: str
    md5: str
    folder: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlsplit(self.address).path).name

    def fetch(self, store: Path) -> None:
        """Download the file into `store`, unless it is there and whole.

        Raises:
            DataError: It cannot be fetched, or arrives damaged.
        """
        file = store / self.name
        if file.exists() and _md5(file) == self.md5:
            return
        # A download that a server cuts short may look like one that has ended, so the sum decides about the name.
        arrived = store / f"{self.name}.unchecked"
        try:
            torch.hub.download_url_to_file(self.address, str(arrived))
        except (OSError, HTTPException) as error:
            raise DataError(f"{self.address}: {error or type(error).__name__}") from error
        found = _md5(arrived)
        if found != self.md5:
            size = arrived.stat().st_size
            arrived.unlink()
            raise DataError(
                f"{self.address} arrived cut short or damaged: expected the MD5 sum {self.md5}, got {found} over "
                f"{size} bytes; the next try fetches it anew"
            )
        arrived.replace(file)

    def unpack(self, store: Path, tree: Path) -> None:
        """Unpack the file, which is in `store`, into its folder under `tree`.

        Raises:
            DataError: It cannot be unpacked, or would write elsewhere.
        """
        file, target = store / self.name, tree / self.folder
        target.mkdir(parents=True, exist_ok=True)
        try:
            if tarfile.is_tarfile(file):
                with tarfile.open(file) as tar:
                    # It refuses what leads out of the folder. Old Pythons lack it; there the sum alone has to do.
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)
                    tar.extractall(target)
            elif zipfile.is_zipfile(file):
                # It drops whatever in a name would lead out of the folder.
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(target)
            else:
                shutil.copy(file, target)
        except Exception as error:  # an archive may raise anything
            raise DataError(f"{self.name} cannot be unpacked: {error or type(error).__name__}") from error


def _md5(file: Path) -> str:
    # For integrity, not for security: machines that forbid MD5 allow it for that.
    found = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
