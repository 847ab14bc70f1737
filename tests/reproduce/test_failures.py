"""What `reproduce` says of runs that fail, and of finished ones that were made from other files."""

from pathlib import Path

import pytest
import torch

from tests.data.trees import write_folder
from tuckprop import zoo
from tuckprop.cli import main
from tuckprop.reproduce import Run, carry_out

TINY = {"model": "digits_cnn", "data": "digits", "train_size": 32, "val_size": 20, "batch_size": 16, "epochs": 1}
TINY |= {"codec": "plain"}


@pytest.mark.usefixtures("here")
def test_a_missing_data_set_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data-path", str(tmp_path / "absent"), "--only", "plain", "hosvd", "--set", "last=[1,2,3]"]
    assert main(["reproduce", "fig5", "--out", str(tmp_path / "out"), *options]) == 1
    shown, errors = capsys.readouterr()
    assert shown.count("CLASS/NAME") == 1
    assert shown.count("run 1 of 6") == 2
    assert "run 2 of 6" not in shown
    assert "no other run of data set cifar10 is started" in shown
    grouped, summary = errors.splitlines()
    assert grouped.startswith("tuckprop: 6 runs: data set cifar10: CIFAR-10: there is nothing at ")
    assert summary.startswith("tuckprop: 6 of 6 runs failed")


@pytest.mark.usefixtures("here")
def test_runs_of_other_data_are_still_started(tmp_path: Path) -> None:
    absent = TINY | {"data": "cifar10", "data_path": tmp_path / "absent"}
    lines: list[str] = []
    chosen = [Run("a", absent), Run("b", TINY), Run("c", absent | {"seed": 1})]
    first, other, last = carry_out(chosen, tmp_path, lines.append)
    assert other.error is None
    assert first.error == last.error
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("here")
def test_another_error_does_not_keep_runs_of_the_same_data_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--scale", "small", "--only", "plain", "--set", "last=[99,98,1]", "epochs=1"]
    assert main(["reproduce", "fig5", "--out", str(tmp_path), *options]) == 1
    shown, errors = capsys.readouterr()
    assert "run 3 of 3" in shown
    first, second, summary = errors.splitlines()
    assert first.startswith("tuckprop: plain-last99: ")
    assert second.startswith("tuckprop: plain-last98: ")
    assert summary.startswith("tuckprop: 2 of 3 runs failed")


@pytest.mark.parametrize("options", [["fig5", "--scale", "small"], ["fig3a"]], ids=" ".join)
def test_a_folder_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["reproduce", *options, "--out", str(tmp_path / "file")]) == 2
    shown, error = capsys.readouterr()
    assert "run 1" not in shown
    assert error.startswith("tuckprop: out: expected a folder that can be made and written to, got ")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("here")
def test_a_finished_run_of_other_files_is_kept_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save(zoo.build("digits_cnn", 10, 1).state_dict(), tmp_path / name)

    def told(weights: str | None) -> list[str]:
        lines: list[str] = []
        settings = TINY if weights is None else TINY | {"weights": weights}
        outcomes = carry_out([Run(f"{seed}", settings | {"seed": seed}) for seed in (1, 2)], tmp_path, lines.append)
        assert all(outcome.error is None for outcome in outcomes)
        return [line for line in lines if "TuckpropWarning" in line]

    assert told("a.pt") == []
    # The same file by another path.
    assert told(str(tmp_path / "a.pt")) == []
    (line,) = told("b.pt")
    assert "weights: finished runs" in line
    assert "made with a.pt, got b.pt" in line
    (line,) = told(None)
    assert "made with a.pt, got none" in line


@pytest.mark.usefixtures("here")
def test_another_place_of_the_data_is_warned_of(tmp_path: Path) -> None:
    settings = TINY | {"data": "folder", "model": "mcunet", "train_size": 20, "val_size": 10, "batch_size": 10}
    settings |= {"resolution": 32, "data_path": write_folder(tmp_path / "data")}
    lines: list[str] = []
    for change in ({}, {"data_path": tmp_path / "moved"}):
        (outcome,) = carry_out([Run("run", settings | change)], tmp_path / "out", lines.append)
        assert outcome.error is None
    assert f"data_path: finished runs in {tmp_path / 'out'} were made with {tmp_path / 'data'}" in lines[-1]
    assert f"got {tmp_path / 'moved'}" in lines[-1]
