"""Segmentation: loss and metrics against counting by hand, and whole runs on made-up shapes."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.train.shapes import Shapes
from tuckprop import HOSVD, GradientFilter, Plan, convert, zoo
from tuckprop.cli import main
from tuckprop.codecs import Codec
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.layers import Twin
from tuckprop.report import read_record
from tuckprop.train import (
    Classification,
    Compression,
    DataSettings,
    Experiment,
    NetworkSettings,
    Prepared,
    Schedule,
    Segmentation,
    Start,
    compress,
    prepare,
)
from tuckprop.train import run as run_one
from tuckprop.train.loop import Trainer

TASK = Segmentation(3)


def by_hand(predicted: Tensor, masks: Tensor, classes: int) -> tuple[float, float]:
    """Return mIoU and mAcc, counted class by class."""
    kept = masks != 255
    overlaps, found = [], []
    for label in range(classes):
        is_, said = (masks == label) & kept, (predicted == label) & kept
        if (is_ | said).any():
            overlaps.append(((is_ & said).sum() / (is_ | said).sum()).item())
        if is_.any():
            found.append(((is_ & said).sum() / is_.sum()).item())
    return sum(overlaps) / len(overlaps), sum(found) / len(found)


@pytest.mark.parametrize("absent", [False, True])
def test_metrics_are_over_all_pixels_that_count(absent: bool) -> None:
    outputs = torch.randn(5, 4, 9, 7)
    masks = torch.randint(0, 4, (5, 9, 7))
    if absent:
        outputs[:, 2], masks[masks == 2] = -99.0, 0
    masks[torch.rand(5, 9, 7) < 0.2] = 255
    meter = Segmentation(4).meter()
    assert meter.metrics() == {"mIoU": 0.0, "mAcc": 0.0}
    for part in (slice(0, 1), slice(1, 5)):
        meter.update(outputs[part], masks[part])
    overlap, accuracy = by_hand(outputs.argmax(1), masks, 4)
    assert meter.metrics() == {"mIoU": pytest.approx(overlap), "mAcc": pytest.approx(accuracy)}


def scores(predicted: Tensor, classes: int) -> Tensor:
    """Return outputs whose largest score is the predicted class's."""
    return F.one_hot(predicted, classes).movedim(-1, 1).float()


def test_classes_that_are_absent() -> None:
    # Class 2 is found where it is not, class 3 is nowhere but under an ignored pixel, and class 4 is missed.
    masks = torch.tensor([[[0, 0, 0, 0, 1, 1, 4, 255]]])
    predicted = torch.tensor([[[0, 0, 0, 2, 1, 0, 1, 3]]])
    meter = Segmentation(5).meter()
    meter.update(scores(predicted, 5), masks)
    # By class: overlaps 3 of 5, 1 of 3, 0 of 1, none, 0 of 1; found 3 of 4, 1 of 2, none, none, 0 of 1.
    assert meter.metrics() == {"mIoU": pytest.approx((3 / 5 + 1 / 3) / 4), "mAcc": pytest.approx((3 / 4 + 1 / 2) / 3)}


def test_where_no_pixel_counts_there_is_nothing() -> None:
    meter = TASK.meter()
    meter.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert meter.metrics() == {"mIoU": 0.0, "mAcc": 0.0}


@given(
    classes=st.integers(2, 6),
    pixels=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=30),
)
def test_metrics_are_mmsegs(classes: int, pixels: list[tuple[int, int]]) -> None:
    predicted = np.array([[min(said, classes - 1) for said, _ in pixels]])
    targets = np.array([[255 if label == 6 else min(label, classes - 1) for _, label in pixels]])
    counted = targets != 255
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (targets[counted], predicted[counted]), 1)
    hits, had, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    expected = {
        name: np.mean(hits[of > 0] / of[of > 0]) if counted.any() else 0.0
        for name, of in (("mIoU", had + said - hits), ("mAcc", had))
    }
    meter = Segmentation(classes).meter()
    meter.update(scores(torch.tensor(predicted)[None], classes), torch.tensor(targets)[None])
    assert meter.metrics() == pytest.approx(expected)


@pytest.mark.parametrize("task", [Classification(), TASK], ids=lambda task: type(task).__name__)
def test_a_meter_goes_on_from_its_state(task: Classification | Segmentation) -> None:
    shape = (6,) if isinstance(task, Classification) else (6, 5, 5)
    outputs, targets = torch.randn(6, 3, *shape[1:]), torch.randint(0, 3, shape)
    whole, first, second, last = (task.meter() for _ in range(4))
    whole.update(outputs, targets)
    first.update(outputs[:2], targets[:2])
    second.restore(first.state())
    assert second.metrics() == first.metrics()
    second.update(outputs[2:], targets[2:])
    assert second.metrics() == whole.metrics()
    last.restore(second.state())
    assert last.metrics() == whole.metrics()
    assert set(whole.metrics()) >= {task.metric}


def test_the_loss_is_over_pixels_that_count() -> None:
    outputs, masks = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 4, 4))
    masks[0] = 255
    masks[1, 0] = 255
    assert TASK.weight(masks) == 12
    assert_close(TASK.loss(outputs, masks), F.cross_entropy(outputs[1:, :, 1:], masks[1:, 1:]))
    nothing = TASK.loss(outputs, torch.full_like(masks, 255))
    nothing.backward()
    assert nothing == 0
    assert not outputs.grad.any()


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "text"),
    [
        (TASK, (2, 3), (2, 8, 8), "pspnet_r18"),
        (TASK, (2, 3, 4, 4), (2, 8, 8), r"\[2, 3, 8, 8\].*\[2, 3, 4, 4\]"),
        (TASK, (2, 5, 8, 8), (2, 8, 8), r"\[2, 5, 8, 8\]"),
        (Classification(), (2, 3, 8, 8), (2,), "classification"),
    ],
)
def test_a_network_for_something_else_is_refused(
    task: Classification | Segmentation, outputs: tuple[int, ...], targets: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        task.loss(torch.zeros(outputs), torch.zeros(targets, dtype=torch.int64))


def test_absent_torchmetrics_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=r"tuckprop\[cli\]"):
        TASK.meter()


@pytest.mark.parametrize(("name", "compressed"), [("pspnet_r18", False), ("fcn_r18", True)])
def test_a_network_of_the_paper_learns_shapes(name: str, compressed: bool) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, 3)
    if compressed:
        convert(model, dict.fromkeys(zoo.paper_layers(name, 5), HOSVD(0.8)), pointwise=False)
    schedule = Schedule(
        steps=40, validate_every=20, warmup=4, learning_rate=0.05, final_share=0.01, momentum=0.9, clip=1
    )
    trainer = Trainer(model, schedule, task=TASK)
    train, val = Shapes(64, 4, seed=1, side=48), Shapes(16, 8, seed=2, side=48)
    _, before = trainer.evaluate(val)
    assert trainer.train(train, val)
    last = trainer.epochs[-1]
    # All background is an mIoU of under 0.3.
    assert before["mIoU"] < 0.3
    assert last.val_accuracy == last.metrics["mIoU"] > 0.4
    assert last.metrics["mAcc"] > 0.5
    assert last.loss < trainer.epochs[0].loss


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


def after(count: int) -> Callable[[], bool]:
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= count


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


def paper_run(count: int, codec: Codec | None, **others: Any) -> Experiment:
    return Experiment(
        NetworkSettings("fcn_r18"),
        DataSettings("shapes", resolution=32, train_size=8, val_size=4, batch_size=4),
        Compression(codec, paper_layers=count, **others),
        Schedule(steps=2, validate_every=1),
    )


def build(experiment: Experiment) -> Prepared:
    return prepare(experiment.network, experiment.data, experiment.machine, 1)


@pytest.mark.parametrize("codec", [None, HOSVD()], ids=["plain", "hosvd"])
@pytest.mark.parametrize(("name", "count"), [("fcn_r18", 5), ("deeplabv3_r18", 10), ("upernet_r18", 5)])
def test_the_papers_layers_are_trained_and_counted_and_the_rest_is_frozen(
    name: str, count: int, codec: Codec | None
) -> None:
    experiment = replace(paper_run(count, codec), network=NetworkSettings(name))
    prepared = build(experiment)
    assert compress(prepared, experiment.compression) == zoo.paper_layers(name, count)
    trained = zoo.paper_trained(name, count)
    for parameter, value in prepared.model.named_parameters():
        assert value.requires_grad == any(parameter.startswith(f"{part}.") for part in trained), parameter
    twins = [
        layer
        for layer, module in prepared.model.named_modules()
        if isinstance(module, Twin) and isinstance(module, nn.Conv2d)
    ]
    assert twins == ([] if codec is None else list(zoo.paper_layers(name, count)))
    prepared.model.train()
    images, masks = next(iter(prepared.data.train.serve()))
    prepared.task.loss(prepared.model(images), masks).backward()
    assert all(value.grad is not None for value in prepared.model.parameters() if value.requires_grad)
    assert not prepared.model.get_submodule("encoder.bn1").training


def test_a_run_of_the_papers_layers_resumes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = paper_run(5, HOSVD())
    first = run_one(experiment, tmp_path, stop=after(1))
    assert not first.finished
    with pytest.raises(CheckpointError, match="paper_layers is 5 there, None here"):
        run_one(replace(experiment, compression=Compression(HOSVD())), tmp_path, Start(resume=True))
    record = run_one(experiment, tmp_path, Start(resume=True))
    assert record.finished
    assert record.sites == zoo.paper_layers("fcn_r18", 5)
    assert read_record(tmp_path).settings["paper_layers"] == 5
    assert main(["table", str(tmp_path), "--markdown"]) == 0
    assert "| paper's 5 |" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"last": 2}, {"select": "encoder.*"}])
def test_the_papers_layers_are_given_alone(other: dict[str, Any]) -> None:
    experiment = paper_run(5, HOSVD(), **other)
    with pytest.raises(ConfigError, match=f"paper_layers: expected it alone or {next(iter(other))}"):
        compress(build(experiment), experiment.compression)


@pytest.mark.parametrize("codec", [None, HOSVD()], ids=["plain", "hosvd"])
@pytest.mark.parametrize("freeze_norms", [True, False])
def test_only_the_named_modules_are_trained_and_other_norms_follow_the_data(
    codec: Codec | None, freeze_norms: bool
) -> None:
    names = ("decoder.conv_cat", "classifier")
    experiment = paper_run(5, codec)
    prepared = build(experiment)
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    sites = compress(prepared, Compression(codec, train_only=names))
    assert sites == ("decoder.conv_cat.0", "classifier")
    trainer = Trainer(prepared.model, replace(experiment.schedule, freeze_norms=freeze_norms), task=prepared.task)
    trainer.train(prepared.data.train, prepared.data.val)
    after = prepared.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained = {name for name, _ in prepared.model.named_parameters() if name.startswith(tuple(f"{n}." for n in names))}
    statistics = {name for name, _ in prepared.model.named_buffers()}
    assert moved == trained | (set() if freeze_norms else statistics)


def test_modules_to_train_are_given_alone_and_there(tmp_path: Path) -> None:
    prepared = build(paper_run(5, None))
    for other in ({"last": 2}, {"paper_layers": 5}):
        with pytest.raises(ConfigError, match=f"train_only: expected it alone or {next(iter(other))}"):
            compress(prepared, Compression(None, train_only=("classifier",), **other))
    with pytest.raises(ConfigError, match="such as encoder, decoder, classifier, got 'head'"):
        compress(prepared, Compression(None, train_only=("head",)))
    assert compress(prepared, Compression(None, select="decoder.convs.*", train_only=("decoder",))) == (
        "decoder.convs.0.0", "decoder.convs.1.0"
    )  # fmt: skip


def test_a_run_of_named_modules_resumes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options += ["--model", "fcn_r18", "--train-only", "decoder", "classifier", "--steps", "2", "--out", str(tmp_path)]
    assert main(["train", *options]) == 0
    assert main(["train", *options, "--resume"]) == 0
    assert main(["table", str(tmp_path), "--markdown"]) == 0
    assert "| decoder, classifier |" in capsys.readouterr().out
    assert main(["train", *options, "--train-only", "classifier", "--resume"]) == 2
    assert "train_only is" in capsys.readouterr().err


def test_gradient_filter_has_the_published_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = paper_run(5, GradientFilter(), paper_patches=True)
    prepared = build(replace(experiment, network=NetworkSettings("deeplabv3_r18")))
    compress(prepared, experiment.compression)
    patches = {
        name: module._site.codec.patch
        for name, module in prepared.model.named_modules()
        if isinstance(module, Twin) and isinstance(module, nn.Conv2d)
    }
    assert list(patches.values()) == [3, 3, 6, 9, 3]
    assert patches == zoo.paper_patches("deeplabv3_r18", 5)
    record = run_one(experiment, tmp_path)
    assert record.method == "Gradient Filter, patches by layer"
    # 5 layers of FCN with patches of 4 on maps of 4 x 4: one sum a channel.
    assert record.epochs[-1].paper_bytes == 4 * experiment.data.batch_size * (512 + 512 + 512 + 128 + 640)
    options = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options += ["--model", "deeplabv3_r18", "--codec", "gradient_filter", "--paper-layers", "5", "--paper-patches"]
    assert main(["plan", *options, "--save", str(tmp_path / "plan.json")]) == 0
    made = Plan.from_json((tmp_path / "plan.json").read_text())
    assert [site.codec for site in made.sites if site.kind == "Conv2d"] == [GradientFilter(p) for p in (3, 3, 6, 9, 3)]


@pytest.mark.parametrize(
    ("codec", "count"), [(HOSVD(), 5), (None, 5), (GradientFilter(), None)], ids=["hosvd", "plain", "no layers"]
)
def test_published_patches_are_gradient_filters_and_of_the_papers_layers(
    codec: Codec | None, count: int | None
) -> None:
    settings = Compression(codec, paper_layers=count, paper_patches=True)
    with pytest.raises(ConfigError, match="paper_patches: expected codec gradient_filter and paper_layers 5 or 10"):
        compress(build(paper_run(5, HOSVD())), settings)


def test_plan_and_measure_take_the_papers_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options = [*data, "--model", "pspnet_r18", "--codec", "hosvd", "--paper-layers", "5"]
    assert main(["plan", *options, "--save", str(tmp_path / "plan.json")]) == 0
    made = Plan.from_json((tmp_path / "plan.json").read_text())
    assert [site.name for site in made.sites if site.kind == "Conv2d"] == ["decoder.conv.0"]
    model = convert(zoo.build("pspnet_r18", 3), made)
    trained = {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"decoder", "classifier"}
    assert main(["measure", *options]) == 0
    assert "decoder.conv.0" in capsys.readouterr().out
    assert main(["plan", *data, "--model", "mcunet", "--paper-layers", "5"]) == 2
    assert "fcn_r18" in capsys.readouterr().err
