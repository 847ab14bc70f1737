"""`tuckprop report`."""

from pathlib import Path

import pytest

from tests.report.made import record
from tuckprop.cli import main
from tuckprop.report import write_record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_record(record("plain"), tmp_path / "runs" / "a" / "record.jsonl")
    write_record(record("HOSVD 0.8", finished=False), tmp_path / "runs" / "b" / "record.jsonl")
    return tmp_path / "runs"


def test_it_writes_one_file_and_names_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(runs / "a"), str(runs / "b"), "--out", str(out), "--title", "A & B"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert list(out.parent.iterdir()) == [out]
    text = out.read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text
    assert "HOSVD 0.8, last 2, seed 1: 70.0%, not finished, 3 of 3 epochs" in text


def test_a_folder_of_files_of_records_is_one_page(tmp_path: Path) -> None:
    write_record(record("plain"), tmp_path / "runs" / "first.jsonl")
    write_record(record("SVD 0.8"), tmp_path / "runs" / "second.jsonl")
    (tmp_path / "runs" / "speed.jsonl").write_text('{"network": "mcunet"}\n')
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "SVD 0.8, last 2" in text
    assert "plain, last 2" in text


def test_a_file_is_replaced_only_when_asked(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("mine")
    assert main(["report", str(runs)]) == 2
    error = capsys.readouterr().err
    assert "report.html exists already; choose another name or add --overwrite" in error
    assert error.count("\n") == 1
    assert Path("report.html").read_text() == "mine"
    assert main(["report", str(runs), "--overwrite"]) == 0
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_half_a_surrogate_pair_is_written(tmp_path: Path) -> None:
    write_record(record(note="\ud800 é"), tmp_path / "run" / "record.jsonl")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert "<td>&#55296; é</td>" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "expected one folder of runs or more, got none"),
        (["absent"], "absent"),
        (["runs", "--out", "runs"], "expected a file to write, got the folder runs"),
        (["runs", "--out", "runs", "--overwrite"], "got the folder runs"),
        (["empty"], "found no record.jsonl in it"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("runs")
def test_a_wrong_argument_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["report", *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not Path("report.html").exists()
