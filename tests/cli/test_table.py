"""`tuckprop table`."""

from pathlib import Path

import pytest

from tests.report.made import record
from tuckprop.cli import main
from tuckprop.report import write_record


@pytest.mark.parametrize("count", [1, 3, 5])
def test_unfinished_runs_are_left_away_and_some_of_them_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    write_record(record("plain"), tmp_path / "done" / "record.jsonl")
    for seed in range(count):
        write_record(record("SVD 0.8", finished=False, seed=seed), tmp_path / str(seed) / "record.jsonl")
    assert main(["table", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert f"left away: {count} runs" in said
    assert said.count("SVD 0.8") == min(count, 3)
    assert ("..." in said) is (count > 3)
