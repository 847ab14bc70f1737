"""A progress bar for training: loss, accuracy, memory, time left, and a line for every epoch."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tuckprop.report import Epoch, Spread
from tuckprop.report.table import data_size
from tuckprop.train import Step


class TrainingProgress:
    """Shows a run on the terminal; a Watch.

    Args:
        console: Where to.
        epochs: How many there will be.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_step(self, step: Step) -> None:
        """Move the bar; the first step shows it."""
        self._progress.start()
        numbers = (
            f"epoch {step.epoch}/{self._epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.1%}"
            f"  memory {data_size(Spread(step.paper_bytes, None))}"
        )
        total, done = self._epochs * step.steps, (step.epoch - 1) * step.steps + step.step
        self._progress.update(self._task, total=total, completed=done, description=numbers)

    def on_epoch(self, epoch: Epoch) -> None:
        """Print the epoch's line."""
        self._console.print(
            f"epoch {epoch.epoch}/{self._epochs}  loss {epoch.loss:.3f}  accuracy {epoch.train_accuracy:.1%}"
            f"  validation {epoch.val_accuracy:.1%}  memory {data_size(Spread(epoch.paper_bytes, None))}"
            f"  {epoch.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
