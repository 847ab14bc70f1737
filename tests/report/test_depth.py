"""Which layers a run trained, in words and in order."""

from typing import Any

import pytest

from tests.report.made import record
from tuckprop.report import summarise
from tuckprop.report.depth import Depth


@pytest.mark.parametrize(
    ("settings", "text", "number"),
    [
        ({"last": None}, "all", "all"),
        ({"last": 4}, "last 4", "4"),
        ({"last": None, "paper_layers": 10}, "paper's 10", "10"),
        ({"last": 2, "paper_layers": None}, "last 2", "2"),
        ({"last": None, "train_only": ["decoder", "classifier"]}, "decoder, classifier", "decoder, classifier"),
    ],
)
def test_words(settings: dict[str, Any], text: str, number: str) -> None:
    depth = Depth.of(settings)
    assert (str(depth), depth.number) == (text, number)


def test_the_papers_lists_are_rows_of_their_own_in_order() -> None:
    asked = [(None, 10), (None, None), (10, None), (None, 5)]
    rows = summarise([record(last=last, paper_layers=paper) for last, paper in asked])
    assert [str(row.layers) for row in rows] == ["paper's 5", "last 10", "paper's 10", "all"]


def test_records_from_before_the_lists_are_in_one_row_with_later_ones() -> None:
    (row,) = summarise([record(seed=1), record(seed=2, paper_layers=None)])
    assert row.runs == 2
