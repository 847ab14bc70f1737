"""The folder that a run writes into."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from tuckprop.errors import ConfigError


def make_folder(out: Path) -> None:
    """Make a folder where there is none, and check that files can be made in it.

    Args:
        out: The folder.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"out: expected a folder that can be made and written to, got {out} ({reason}); give another with --out"
        ) from error


@contextmanager
def made_folder(out: Path) -> Iterator[None]:
    """Make a folder, before work that may take long; where that work is refused, take away again what was made.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        make_folder(out)
        yield
    except BaseException:
        # What something was written into stays.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
