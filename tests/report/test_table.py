"""Tables."""

import io

import pytest
from rich.console import Console

from tests.report.made import record, segmentation
from tuckprop.report import Spread, markdown, summarise, tables
from tuckprop.report.table import data_size

ROWS = summarise([
    record("plain", held=3 * 2**20),
    record("HOSVD 0.8", seed=1, accuracies=(0.5, 0.6, 0.55)),
    record("HOSVD 0.8", seed=2, accuracies=(0.5, 0.7, 0.65)),
    record("plain", data="cifar10", last=None),
])


@pytest.mark.parametrize(
    ("value", "text"),
    [(Spread(512, None), "512 B"), (Spread(4825.6, None), "4.71 KiB"), (Spread(27.5625 * 2**20, None), "27.6 MiB"),
     (Spread(2.5 * 2**30, 2**29), "2.50 ± 0.50 GiB"), (Spread(0, None), "0.00 B")],
)  # fmt: skip
def test_sizes_read_well(value: Spread, text: str) -> None:
    assert data_size(value) == text


def test_markdown_has_a_table_a_task_and_a_line_a_row() -> None:
    text = markdown(ROWS)
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("**")] == ["**cifar10, mcunet**".replace("mcunet", "digits_cnn"),
                                                                "**digits, digits_cnn**"]  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in cells} == {len(cells[0])}
    hosvd = next(row for row in cells if row[0] == "HOSVD 0.8")
    assert hosvd[:5] == ["HOSVD 0.8", "last 2", "2", "65.0 ± 7.1", "60.0 ± 7.1"]
    assert next(row for row in cells if row[0] == "plain" and row[1] == "all")[3] == "70.0"


def test_segmentation_is_told_by_its_metrics() -> None:
    rows = summarise([segmentation(), segmentation(seed=2)])
    (heading, _, line) = (row for row in markdown(rows).splitlines() if row.startswith("|"))
    cells = dict(zip(*([cell.strip() for cell in row.strip("|").split("|")] for row in (heading, line)), strict=True))
    assert cells["mIoU, best epoch, %"] == "70.0 ± 0.0"
    assert cells["mIoU, last epoch, %"] == "60.0 ± 0.0"
    assert cells["mAcc, best epoch, %"] == "35.0 ± 0.0"
    (table,) = tables(rows)
    assert [column.header for column in table.columns][2] == "mIoU, %"
    assert "accuracy" not in markdown(rows) + str(table.caption)


def test_the_terminals_table_fits_eighty_columns_and_loses_no_number() -> None:
    console = Console(file=io.StringIO(), width=80)
    for table in tables(ROWS):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in ("HOSVD", "last 2", "65.0", "3.00 MiB"):
        assert part in text
