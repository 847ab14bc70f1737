"""Checkpoints: whole or absent, safe to read, of one run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tuckprop.errors import CheckpointError
from tuckprop.train import load_checkpoint, save_checkpoint

IDENTITY = {"seed": 1, "learning_rate": 0.05, "codec_settings": {"epsilon": 0.8}, "last": None}
STATE: dict[str, Any] = {"model": {"w": torch.arange(3000.0)}, "epochs": [{"loss": 0.5}], "random_cuda": None}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    found = load_checkpoint(path, IDENTITY)
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])
    assert found["epochs"] == STATE["epochs"]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    save = torch.save

    def crash(content: object, file: Any) -> None:
        save(content, file)
        file.truncate(2000)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, IDENTITY, STATE | {"epochs": []})
    monkeypatch.undo()
    assert load_checkpoint(path, IDENTITY)["epochs"] == STATE["epochs"]


def test_a_checkpoint_of_before_a_setting_goes_on_where_that_is_off(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    assert load_checkpoint(path, IDENTITY | {"later": False})["epochs"] == STATE["epochs"]
    with pytest.raises(CheckpointError, match="later is None there, True here"):
        load_checkpoint(path, IDENTITY | {"later": True})
    with pytest.raises(CheckpointError, match="later is None there, 0 here"):
        load_checkpoint(path, IDENTITY | {"later": 0})


def test_nobody_is_advised_to_load_a_wrong_file_unsafely(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="something else than tensors") as error:
        load_checkpoint(tmp_path / "checkpoint.pt", IDENTITY)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        load_checkpoint(path, IDENTITY)


def test_a_flipped_bit_among_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    content = bytearray(path.read_bytes())
    where = content.find(torch.arange(1000.0, 1010.0).numpy().tobytes())
    assert where > 0
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, IDENTITY)


def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {proof}",)

    torch.save({"format": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "checkpoint.pt", IDENTITY)
    assert not proof.exists()


@pytest.mark.parametrize("content", [{"w": torch.zeros(2)}, [1], {"format": "tuckprop checkpoint 0"}])
def test_other_files_of_torch_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="something else"):
        load_checkpoint(tmp_path / "checkpoint.pt", IDENTITY)


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, STATE)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, IDENTITY | {"seed": 2, "last": 4})
    assert "seed is 1 there, 2 here" in str(error.value)
    assert "last is None there, 4 here" in str(error.value)
    assert "learning_rate" not in str(error.value)


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        load_checkpoint(tmp_path / "checkpoint.pt", IDENTITY)
