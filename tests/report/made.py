"""Records that the tests make up."""

from dataclasses import replace
from typing import Any

from tuckprop.report import Epoch, Memory, Record


def epoch(number: int, accuracy: float, paper: float = 1000.0) -> Epoch:
    return Epoch(number, 1.0 / number, 0.5, 1.5, accuracy, 0.05, paper, 0.01 * number, 2.0)


def segmentation(method: str = "plain", **settings: Any) -> Record:
    made = record(method, **{"data": "shapes", "model": "fcn_r18"} | settings)
    epochs = tuple(replace(e, metrics={"mIoU": e.val_accuracy, "mAcc": e.val_accuracy / 2}) for e in made.epochs)
    return replace(made, metric="mIoU", epochs=epochs)


def record(
    method: str = "plain",
    *,
    accuracies: tuple[float, ...] = (0.5, 0.7, 0.6),
    paper: tuple[float, ...] = (1000.0, 3000.0, 2000.0),
    held: int = 4096,
    finished: bool = True,
    **settings: Any,
) -> Record:
    memory = Memory(held, 2 * held, 3 * held, 1000, 10**8, 9 * 10**7, "resident set") if finished else None
    asked = {"data": "digits", "model": "digits_cnn", "last": 2, "seed": 1, "epochs": 3, "threads": 1} | settings
    epochs = tuple(epoch(n, a, p) for n, (a, p) in enumerate(zip(accuracies, paper, strict=True), start=1))
    return Record(method, asked, {"torch": "2"}, ("0", "2"), epochs, memory)
