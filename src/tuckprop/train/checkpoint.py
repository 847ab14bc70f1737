"""Checkpoints that are whole or absent, hold nothing but tensors and plain values, and know which run they are of."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from tuckprop.errors import CheckpointError
from tuckprop.whole_file import whole_file
from tuckprop.zoo.weights import why_unread

FILE = "checkpoint.pt"
_FORMAT = "tuckprop checkpoint 2"


def save_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves the one before or the new one, never half of one.

    Args:
        path: The file; its folder is made where there is none.
        identity: Settings that a run must have to go on from here.
        state: Tensors, numbers, strings, and lists and dictionaries of these.
    """
    with whole_file(path) as file:
        torch.save({"format": _FORMAT, "identity": identity, "state": state}, file)


def load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run that `identity` describes.

    Args:
        path: The file.
        identity: As `save_checkpoint` was given it.

    Returns:
        The state.

    Raises:
        CheckpointError: There is none, it is damaged or no checkpoint, or it belongs to a run with other settings.
    """
    if not path.is_file():
        raise CheckpointError(f"resume: expected a checkpoint at {path}, there is none; start without --resume")
    try:
        # A file of torch.save is a zip with checksums, which torch.load does not look at.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(f"resume: {path} is damaged or no checkpoint of tuckprop: {why_unread(error)}") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(f"resume: expected a checkpoint of tuckprop ({_FORMAT}) at {path}, got something else")
    there, state = found["identity"], found["state"]
    differing = [key for key in {**there, **identity} if not _same(there.get(key), identity.get(key))]
    if differing:
        shown = "; ".join(f"{key} is {there.get(key)!r} there, {identity.get(key)!r} here" for key in differing)
        raise CheckpointError(
            f"resume: {path} belongs to another run: {shown}; give the settings that it has, or another folder (--out)"
        )
    if not isinstance(state, dict):
        raise CheckpointError(f"resume: {path} is damaged: expected a state in it, there is none")
    return state


def _same(there: Any, here: Any) -> bool:
    """Say whether two values of a setting are one; an older checkpoint lacks settings that came later and are off."""
    off = there is None and here is False
    return off or bool(there == here)
