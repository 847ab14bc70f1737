"""One class for a pixel: cross-entropy, mean intersection over union and mean accuracy of classes."""

import importlib
import warnings
from contextlib import suppress
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tuckprop.errors import ConfigError
from tuckprop.zoo import import_torchvision

IGNORED = 255
"""The class of pixels that count nowhere, as in Pascal VOC."""


class Overlap:
    """mIoU and mAcc, as torchmetrics computes them from all pixels together; a Meter.

    mIoU is the mean over classes of the share of pixels that have a class and are found to have it, among pixels that
    have it or are found to have it; mAcc the mean over classes of the share of its pixels that are found. Classes that
    no pixel has and none is found to have do not count.

    Args:
        classes: How many there are.

    Raises:
        ConfigError: torchmetrics is not installed.
    """

    def __init__(self, classes: int) -> None:
        # torchmetrics imports torchvision where there is one, and does without it.
        with suppress(ConfigError):
            import_torchvision()
        try:
            torchmetrics = importlib.import_module("torchmetrics")
        except ImportError as error:
            raise ConfigError(f"torchmetrics is needed here ({error}): pip install 'tuckprop[cli]'") from error
        settings = {"num_classes": classes, "average": "macro", "ignore_index": IGNORED, "validate_args": False}
        self._metrics = torchmetrics.MetricCollection({
            "mIoU": torchmetrics.classification.MulticlassJaccardIndex(**settings),
            "mAcc": torchmetrics.classification.MulticlassAccuracy(**settings),
        })
        self._metrics.persistent(True)
        self._seen = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: scores, [batch, classes, height, width], and classes, [batch, height, width]."""
        self._metrics.to(outputs.device).update(outputs.argmax(1), targets)
        self._seen = True

    def metrics(self) -> dict[str, float]:
        """Return "mIoU" and "mAcc"."""
        if not self._seen:
            return {"mIoU": 0.0, "mAcc": 0.0}
        with warnings.catch_warnings():
            # Counts that came from a checkpoint are not updates to torchmetrics, which warns of their absence.
            warnings.simplefilter("ignore", UserWarning)
            found = self._metrics.compute()
        return {name: float(found[name]) for name in ("mIoU", "mAcc")}

    def state(self) -> dict[str, Any]:
        """Return the counts of pixels."""
        return {"seen": self._seen, "counts": dict(self._metrics.state_dict())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self._seen = state["seen"]
        self._metrics.load_state_dict(state["counts"])


class Segmentation:
    """One class for a pixel; a Task.

    Args:
        classes: How many there are.
    """

    metric = "mIoU"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over pixels that are not ignored, 0 where all are.

        Args:
            outputs: Scores, [batch, classes, height, width].
            targets: Classes, int64, [batch, height, width]; `IGNORED` where a pixel does not count.

        Raises:
            ConfigError: The network gives no scores of that shape.
        """
        wanted = [len(targets), self.classes, *targets.shape[1:]]
        if list(outputs.shape) != wanted:
            raise ConfigError(
                f"the data has one class for a pixel, so the network must give {wanted} [batch, classes, height, "
                f"width], got {list(outputs.shape)}; choose a network for segmentation with --model, such as pspnet_r18"
            )
        return self.total_loss(outputs, targets) / max(self.weight(targets), 1)

    def total_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross-entropy over the same pixels."""
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")

    def weight(self, targets: Tensor) -> int:
        """Return the number of pixels that are not ignored."""
        return int((targets != IGNORED).sum())

    def meter(self) -> Overlap:
        """Return a meter of mIoU and mAcc."""
        return Overlap(self.classes)
