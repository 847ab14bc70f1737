"""One class for a pixel: cross-entropy, mean intersection over union and mean accuracy of classes."""

import importlib
from contextlib import suppress
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tuckprop.data import IGNORED
from tuckprop.errors import ConfigError
from tuckprop.zoo import import_torchvision


class Overlap:
    """mIoU and mAcc over all pixels together, from torchmetrics' confusion matrix; a Meter.

    mIoU is the mean over classes of the share of pixels that have a class and are found to have it, among pixels that
    have it or are found to have it; a class that no pixel has and none is found to have does not count. mAcc is the
    mean over classes of the share of its pixels that are found; a class that no pixel has does not count. Both are as
    in MMSegmentation, which the paper uses; torchmetrics' own mean accuracy counts a class that no pixel has, but some
    are found to have, as 0.

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
        self._confusion = torchmetrics.classification.MulticlassConfusionMatrix(
            classes, ignore_index=IGNORED, validate_args=False
        )

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: scores, [batch, classes, height, width], and classes, [batch, height, width]."""
        self._confusion.to(outputs.device).update(outputs.argmax(1), targets)

    def metrics(self) -> dict[str, float]:
        """Return "mIoU" and "mAcc", 0 where no pixel counts."""
        counts = self._confusion.confmat.double()
        found, had, said = counts.diag(), counts.sum(1), counts.sum(0)
        if not had.any():
            return {"mIoU": 0.0, "mAcc": 0.0}
        # A class that does not count is 0 / 0 and thus NaN.
        return {"mIoU": float((found / (had + said - found)).nanmean()), "mAcc": float((found / had).nanmean())}

    def state(self) -> dict[str, Any]:
        """Return the counts of pixels."""
        return {"confusion": self._confusion.confmat.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self._confusion.confmat = state["confusion"].clone()


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
