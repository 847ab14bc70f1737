"""One class for an image: cross-entropy and top-1 accuracy."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tuckprop.errors import ConfigError


class Accuracy:
    """Share of images whose highest score is at the right class; a Meter."""

    def __init__(self) -> None:
        self._right = 0
        self._images = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: scores, [batch, classes], and classes, [batch]."""
        self._right += int((outputs.argmax(1) == targets).sum())
        self._images += len(targets)

    def metrics(self) -> dict[str, float]:
        """Return the share as "accuracy"."""
        return {"accuracy": self._right / self._images if self._images else 0.0}

    def state(self) -> dict[str, Any]:
        """Return the two counts."""
        return {"right": self._right, "images": self._images}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self._right, self._images = state["right"], state["images"]


class Classification:
    """One class for an image; a Task."""

    metric = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of scores, [batch, classes], over classes, [batch].

        Raises:
            ConfigError: The network gives no scores of that shape.
        """
        if outputs.dim() != 2:
            raise ConfigError(
                f"the data has one class for an image, so the network must give [batch, classes], got "
                f"{list(outputs.shape)}; choose a network for classification with --model"
            )
        return F.cross_entropy(outputs, targets)

    def total_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross-entropy over images."""
        return F.cross_entropy(outputs, targets, reduction="sum")

    def weight(self, targets: Tensor) -> int:
        """Return the number of images."""
        return len(targets)

    def meter(self) -> Accuracy:
        """Return a meter of the accuracy."""
        return Accuracy()
