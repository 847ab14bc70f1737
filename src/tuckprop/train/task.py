"""What a network is trained for: a loss, and the metrics that tell how good it is."""

from typing import Any, Protocol

from torch import Tensor


class Meter(Protocol):
    """Metrics over the batches that it was shown."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, shares from 0 to 1; all 0 before the first batch."""

    def state(self) -> dict[str, Any]:
        """Return what it has counted: tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned.

        Raises:
            KeyError: It is the state of another kind of meter.
        """


class Task(Protocol):
    """What a network is trained for."""

    @property
    def metric(self) -> str:
        """Name of the metric that ranks runs; a meter has it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            outputs: Of the network, [batch, classes, ...].
            targets: Classes, int64, [batch, ...].

        Raises:
            ConfigError: The network's outputs do not fit the targets.
        """

    def total_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum whose mean `loss` is, a scalar; the arguments are the same."""

    def weight(self, targets: Tensor) -> int:
        """Return over how many targets that mean is taken."""

    def meter(self) -> Meter:
        """Return a meter that has seen nothing."""
