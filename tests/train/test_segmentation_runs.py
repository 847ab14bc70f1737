"""Whole runs of segmentation on made-up shapes: resumed, recorded, and from the command line."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.train.shapes import Shapes
from tests.train.stopping import after
from tuckprop import HOSVD, zoo
from tuckprop.cli import main
from tuckprop.errors import ConfigError
from tuckprop.report import read_record
from tuckprop.train import Compression, Experiment, NetworkSettings, Schedule, Start
from tuckprop.train import run as run_one


def tiny(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, classes, 1)
    )


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs find a data set of shapes and a network that is quick on it."""
    monkeypatch.setitem(zoo.networks._entries, "tiny", tiny)
    loaded = SimpleNamespace(
        train=Shapes(24, 8, seed=1, side=16), val=Shapes(8, 8, seed=2, side=16), classes=("ground", "square", "disc"),
        channels=3, network="tiny", per_pixel=True,
    )  # fmt: skip
    monkeypatch.setattr(importlib.import_module("tuckprop.train.prepare"), "load", lambda *args, **kwargs: loaded)


EXPERIMENT = Experiment(
    compression=Compression(HOSVD()), schedule=Schedule(steps=10, validate_every=4, warmup=3, momentum=0.9)
)


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("count", [1, 4])
def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_is_not(tmp_path: Path, count: int) -> None:
    whole = run_one(EXPERIMENT, tmp_path / "whole")
    parts = run_one(EXPERIMENT, tmp_path / "parts", stop=after(count))
    while not parts.finished:
        parts = run_one(EXPERIMENT, tmp_path / "parts", Start(resume=True), stop=after(count))
    assert [replace(e, seconds=0.0, step_seconds=0.0) for e in parts.epochs] == [
        replace(e, seconds=0.0, step_seconds=0.0) for e in whole.epochs
    ]
    weights = [torch.load(tmp_path / name / "checkpoint.pt")["state"]["model"] for name in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.usefixtures("shapes")
def test_the_record_names_the_metric_and_has_them_all(tmp_path: Path) -> None:
    returned = run_one(EXPERIMENT, tmp_path)
    record = read_record(tmp_path)
    assert record == returned
    assert record.metric == "mIoU"
    assert [set(epoch.metrics) for epoch in record.epochs] == [{"mIoU", "mAcc"}] * 3
    assert [epoch.val_accuracy for epoch in record.epochs] == [epoch.metrics["mIoU"] for epoch in record.epochs]


@pytest.mark.usefixtures("shapes")
def test_the_command_line_trains_measures_and_tells_miou(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "3", "--validate-every", "2", "--warmup", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "--codec", "hosvd", *options]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert "mIoU" in printed
    assert "accuracy" not in printed
    assert main(["table", str(tmp_path / "run"), "--markdown"]) == 0
    assert "mAcc, best epoch, %" in capsys.readouterr().out
    assert main(["measure"]) == 0
    assert main(["train", "--model", "digits_cnn", "--steps", "1", "--out", str(tmp_path / "wrong")]) == 2
    assert "choose a network for segmentation" in capsys.readouterr().err


@pytest.mark.usefixtures("shapes")
def test_weights_are_from_one_place(tmp_path: Path) -> None:
    both = replace(EXPERIMENT, network=NetworkSettings(weights=tmp_path / "w.pt", pretrained=True))
    with pytest.raises(ConfigError, match=r"w\.pt besides"):
        run_one(both, tmp_path)
    with pytest.raises(ConfigError, match="--weights FILE"):
        run_one(replace(EXPERIMENT, network=NetworkSettings(pretrained=True)), tmp_path)
