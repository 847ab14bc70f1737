"""Records on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.made import record
from tuckprop.errors import CheckpointError
from tuckprop.report import find_records, read_record, write_record


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_written_is_read(tmp_path: Path, finished: bool) -> None:
    written = record(finished=finished, codec_settings={"epsilon": 0.8}, weights=None)
    write_record(written, tmp_path / "a" / "record.jsonl")
    assert read_record(tmp_path / "a" / "record.jsonl") == written
    assert read_record(tmp_path / "a") == written
    assert written.finished is finished


def test_a_file_of_several_records_of_before_there_were_several_metrics_is_read() -> None:
    results = Path(__file__).parents[2] / "docs" / "results" / "mcunet-cifar10.jsonl"
    found = find_records([results])
    assert len(found) == results.read_text().count('"kind": "run"') > 1
    assert all(entry.finished and entry.epochs and 0 < entry.best_accuracy < 1 for entry in found)
    assert {entry.metric for entry in found} == {"accuracy"}
    with pytest.raises(CheckpointError, match=rf"expected the record of one run, got those of {len(found)}"):
        read_record(results)


def test_the_best_epoch_is_the_first_of_the_highest_metric(tmp_path: Path) -> None:
    assert record(accuracies=(0.5, 0.7, 0.7)).best_epoch.epoch == 2


def test_every_line_is_json_of_one_kind(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "record.jsonl")
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert kinds == ["run", "epoch", "epoch", "epoch", "memory"]


def test_a_failed_write_leaves_the_record_before(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write_record(record(), path)
    with pytest.raises(TypeError):
        write_record(replace(record(), environment={"not JSON": object()}), path)
    assert read_record(path) == record()


def test_figures_are_the_papers() -> None:
    found = record(accuracies=(0.5, 0.7, 0.6), paper=(1000.0, 3000.0, 2000.0))
    assert (found.best_accuracy, found.last_accuracy, found.peak_paper_bytes) == (0.7, 0.6, 3000.0)


@pytest.mark.parametrize(
    ("line", "damage"),
    [(1, "{"), (1, '{"kind": "epoch"}'), (2, "[1]"), (2, '{"kind": "epoch", "epoch": 1}'), (3, '{"kind": "else"}'),
     (1, '{"kind": "run", "format": 99}'), (5, '{"kind": "memory", "held_bytes": 3}'), (2, "null")],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path: Path, line: int, damage: str) -> None:
    path = tmp_path / "record.jsonl"
    write_record(record(), path)
    lines = path.read_text().splitlines()
    lines[line - 1] = damage
    path.write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=rf"record\.jsonl, line {line}"):
        read_record(path)


def test_missing_empty_and_binary_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.jsonl", "empty.jsonl", "binary.jsonl"):
        with pytest.raises(CheckpointError, match=name):
            read_record(tmp_path / name)


def test_records_are_found_below_folders_and_once(tmp_path: Path) -> None:
    for name in ("b/x", "a", "b/y"):
        write_record(record(name), tmp_path / name / "record.jsonl")
    found = find_records([tmp_path, tmp_path / "a", tmp_path / "b" / "x" / "record.jsonl"])
    assert [entry.method for entry in found] == ["a", "b/x", "b/y"]
    # Where there are runs' folders, a file that collects their records would count them twice.
    write_record(record("b/x"), tmp_path / "all.jsonl")
    assert find_records([tmp_path]) == found
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="found no"):
        find_records([tmp_path / "c"])


def test_a_folder_of_files_of_records_is_read_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_record(record(name), tmp_path / f"{name}.jsonl")
    text = (tmp_path / "b.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(2 * text)
    (tmp_path / "speed.jsonl").write_text('{"network": "mcunet", "seconds": [1.5]}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    assert [entry.method for entry in find_records([tmp_path])] == ["a", "b", "b"]
    results = Path(__file__).parents[2] / "docs" / "results"
    assert {entry.metric for entry in find_records([results])} == {"accuracy", "mIoU"}
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(CheckpointError, match=r"a\.jsonl, line 1"):
        find_records([tmp_path])
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"no other \.jsonl file with records of runs"):
        find_records([tmp_path])
