"""What a training loop tells while it runs."""

from dataclasses import dataclass
from typing import Protocol

from tuckprop.report.records import Epoch


@dataclass(frozen=True)
class Step:
    """One step, just done.

    Attributes:
        epoch: From 1.
        epochs: In the run.
        step: From 1, within the epoch.
        steps: In this epoch.
        loss: Mean training loss of the epoch so far.
        metric: Name of the metric that ranks runs.
        accuracy: Its value on the training images of the epoch so far.
        paper_bytes: Activation bytes of this step as the paper counts them.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: str
    accuracy: float
    paper_bytes: int


class Watch(Protocol):
    """Is told of every step and epoch."""

    def on_step(self, step: Step) -> None:
        """After a step."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After an epoch and its validation."""


class Silent:
    """Tells nobody."""

    def on_step(self, step: Step) -> None:
        """Do nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Do nothing."""
