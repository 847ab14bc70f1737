"""Runs become rows."""

import numpy as np
import pytest

from tests.report.made import record
from tuckprop.report import Spread, summarise
from tuckprop.report.depth import Depth


def test_runs_that_differ_in_the_seed_alone_are_one_row() -> None:
    records = [
        record(seed=1, accuracies=(0.5, 0.7, 0.6), held=1000),
        record(seed=2, accuracies=(0.5, 0.8, 0.9), held=2000, threads=2),
        record(seed=3, accuracies=(0.1, 0.2, 0.1), held=3000),
    ]
    (row,) = summarise(records)
    assert (row.task, row.method, row.layers, row.runs) == ("digits, digits_cnn", "plain", Depth(2), 3)
    assert row.best_accuracy.mean == pytest.approx(np.mean([0.7, 0.9, 0.2]))
    assert row.best_accuracy.sd == pytest.approx(np.std([0.7, 0.9, 0.2], ddof=1))
    assert row.last_accuracy.mean == pytest.approx(np.mean([0.6, 0.9, 0.1]))
    assert (row.held.mean, row.held.sd) == (2000, 1000)
    assert (row.paper_peak.mean, row.paper_peak.sd) == (3000, 0)
    assert row.paper_mean.sd == pytest.approx(np.std([1000, 3000, 2000] * 3, ddof=1))
    assert row.step_seconds.mean == pytest.approx(0.02)


def test_any_other_setting_makes_another_row() -> None:
    records = [record(), record("HOSVD 0.8"), record(last=4), record(epochs=4), record(data="cifar10")]
    assert len(summarise(records)) == 5


def test_a_setting_that_older_records_lack_makes_no_other_row_where_it_is_off() -> None:
    assert len(summarise([record(), record(seed=2, paper_patches=False)])) == 1
    assert len(summarise([record(), record(seed=2, paper_patches=True)])) == 2


def test_one_run_has_no_spread_and_unfinished_runs_no_row() -> None:
    (row,) = summarise([record(), record(seed=2, finished=False)])
    assert row.runs == 1
    assert row.best_accuracy == Spread(0.7, None)


def test_rows_go_by_depth_and_then_as_they_came() -> None:
    records = [record("b", last=None), record("b", last=4), record("a", last=4), record("a", last=2)]
    found = [(row.method, str(row.layers)) for row in summarise(records)]
    assert found == [("a", "last 2"), ("b", "last 4"), ("a", "last 4"), ("b", "all")]
