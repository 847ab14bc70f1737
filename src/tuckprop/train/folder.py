"""The folder that a run writes into."""

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
