"""A progress bar for training: loss, accuracy, the paper's count of memory, time left, and a line for every epoch."""

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
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step: Step | None = None
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
        # A bar that never was would end in an empty line all the same.
        if self._step is not None:
            self._progress.stop()

    def on_step(self, step: Step) -> None:
        """Move the bar; the first step shows it."""
        self._progress.start()
        self._step = step
        numbers = (
            f"epoch {step.epoch}/{step.epochs}  loss {step.loss:.3f}  {step.metric} {step.accuracy:.1%}"
            f"  paper's count {data_size(Spread(step.paper_bytes, None))}"
        )
        done = step.epoch - 1 + step.step / step.steps
        self._progress.update(self._task, total=step.epochs, completed=done, description=numbers)

    def on_epoch(self, epoch: Epoch) -> None:
        """Print the epoch's line."""
        last = self._step
        of, metric = (f"/{last.epochs}", last.metric) if last else ("", "accuracy")
        validation = ", ".join(f"{name} {value:.1%}" for name, value in epoch.metrics.items())
        self._console.print(
            f"epoch {epoch.epoch}{of}  loss {epoch.loss:.3f}  {metric} {epoch.train_accuracy:.1%}"
            f"  validation {validation}  paper's count {data_size(Spread(epoch.paper_bytes, None))}"
            f"  {epoch.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
