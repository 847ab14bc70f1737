"""Segmentation: loss and metrics against counting by hand, and networks that learn."""

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.train.shapes import Shapes
from tuckprop import HOSVD, convert, zoo
from tuckprop.errors import ConfigError
from tuckprop.train import Classification, Schedule, Segmentation
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
