"""The training loop: plain SGD that knows nothing of codecs, may stop after any step and goes on to the same result."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tuckprop.data import Served
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.memory import PaperCounter
from tuckprop.report.records import Epoch
from tuckprop.train.classification import Classification
from tuckprop.train.settings import Schedule
from tuckprop.train.task import Task
from tuckprop.train.watch import Silent, Step, Watch
from tuckprop.warm import WarmState


@dataclass
class _Tally:
    """What the steps of the running epoch add up to, beside the metrics."""

    steps: int = 0
    weight: int = 0
    loss: float = 0.0
    paper_bytes: list[int] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.weight, 1)


def _steps(schedule: Schedule, batches: int) -> int:
    """Return the length in steps, with so many batches in a pass."""
    return schedule.epochs * batches if schedule.steps is None else schedule.steps


def _epochs(schedule: Schedule, batches: int) -> int:
    """Return the number of validations; the last may come after fewer steps than the others."""
    return -(-_steps(schedule, batches) // (schedule.validate_every or batches))


class Trainer:
    """A model in training.

    Args:
        model: On its device, frozen where it is to be; its trainable parameters are updated.
        schedule: How.
        task: What for; by default classification.
        sites: Names of the layers whose activations the paper counts.
        channels_last: Hand images over channels last in memory.

    Attributes:
        epochs: The epochs that are finished: from one validation to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        task: Task | None = None,
        sites: tuple[str, ...] = (),
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.task = task or Classification()
        self.sites = sites
        self.epochs: list[Epoch] = []
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ConfigError("train: expected parameters to train, got a model whose parameters are all frozen")
        self._trainable = trainable
        self._device = trainable[0].device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._optimizer = torch.optim.SGD(
            trainable, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        self._tally = _Tally()
        self._meter = self.task.meter()

    def train(
        self,
        train: Served,
        val: Served,
        *,
        save: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
        watch: Watch | None = None,
    ) -> bool:
        """Train from where the trainer stands to the last epoch.

        Args:
            train: What to train on.
            val: What to validate on.
            save: Is called after every epoch, and once more before stopping early.
            stop: Is asked after every step whether to stop.
            watch: Is told of steps and epochs.

        Returns:
            Whether the last epoch was reached.

        Raises:
            ConfigError: The loss is not finite any more, or the network does not fit the task.
        """
        watch = watch or Silent()
        epochs = _epochs(self.schedule, len(train))
        with PaperCounter(self.model, self.sites) as counter:
            while len(self.epochs) < epochs:
                if not self._train_epoch(train, counter, stop, watch):
                    save()
                    return False
                self._finish_epoch(val)
                save()
                watch.on_epoch(self.epochs[-1])
        return True

    def _train_epoch(self, train: Served, counter: PaperCounter, stop: Callable[[], bool], watch: Watch) -> bool:
        schedule, tally = self.schedule, self._tally
        number, epochs = len(self.epochs) + 1, _epochs(schedule, len(train))
        before = len(self.epochs) * (schedule.validate_every or len(train))
        steps = min(schedule.validate_every or len(train), _steps(schedule, len(train)) - before)
        self._train_mode()
        begun = perf_counter()
        for images, targets in self._batches(train, before + tally.steps, steps - tally.steps):
            done = before + tally.steps
            self._set_rate(schedule.rate(done // len(train) if schedule.steps is None else done))
            loss, weight = self._step(images, targets)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"training diverged: the loss is {loss} in epoch {number}, step {tally.steps + 1}; use a smaller "
                    f"learning rate than {schedule.learning_rate:g}"
                )
            ended = perf_counter()
            tally.steps += 1
            tally.weight += weight
            tally.loss += loss * weight
            tally.paper_bytes.append(counter.take())
            tally.step_seconds.append(ended - begun)
            tally.seconds += ended - begun
            begun = ended
            metric = self._meter.metrics()[self.task.metric]
            where = number, epochs, tally.steps, steps
            watch.on_step(Step(*where, tally.mean_loss, self.task.metric, metric, tally.paper_bytes[-1]))
            if stop():
                return False
        return True

    def _batches(self, train: Served, done: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the next batches after those of `done` steps, over as many passes as they take."""
        while count > 0:
            passes, start = divmod(done, len(train))
            taken = min(count, len(train) - start)
            yield from islice(train.serve(train.shuffled(self.schedule.seed, passes + 1), start=start), taken)
            done, count = done + taken, count - taken

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _step(self, images: Tensor, targets: Tensor) -> tuple[float, int]:
        """Return the batch's mean loss and over how many targets it is the mean."""
        images, targets = self._move(images), targets.to(self._device)
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self.model(images)
        loss = self.task.loss(outputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trainable, self.schedule.clip)
        self._optimizer.step()
        self._meter.update(outputs.detach(), targets)
        return loss.item(), self.task.weight(targets)

    def _finish_epoch(self, val: Served) -> None:
        begun = perf_counter()
        val_loss, metrics = self.evaluate(val)
        tally, self._tally = self._tally, _Tally()
        meter, self._meter = self._meter, self.task.meter()
        self.epochs.append(
            Epoch(
                epoch=len(self.epochs) + 1,
                loss=tally.mean_loss,
                train_accuracy=meter.metrics()[self.task.metric],
                val_loss=val_loss,
                val_accuracy=metrics[self.task.metric],
                learning_rate=self._optimizer.param_groups[0]["lr"],
                paper_bytes=sum(tally.paper_bytes) / tally.steps,
                step_seconds=median(tally.step_seconds),
                seconds=tally.seconds + perf_counter() - begun,
                metrics=metrics,
            )
        )

    @torch.no_grad()
    def evaluate(self, batches: Served) -> tuple[float, dict[str, float]]:
        """Return mean loss and metrics over all images of `batches`."""
        self.model.eval()
        meter = self.task.meter()
        loss, weight = 0.0, 0
        for images, targets in batches.serve():
            outputs, targets = self.model(self._move(images)), targets.to(self._device)
            loss += self.task.total_loss(outputs, targets).item()
            meter.update(outputs, targets)
            weight += self.task.weight(targets)
        return loss / max(weight, 1), meter.metrics()

    def first_loss(self, train: Served) -> Callable[[nn.Module], Tensor]:
        """Put the model in train mode; return its loss on the first batch as a function, for `tuckprop.measure`."""
        self._train_mode()
        images, targets = next(iter(train.serve()))
        images, targets = self._move(images), targets.to(self._device)
        return lambda model: self.task.loss(model(images), targets)

    def _train_mode(self) -> None:
        self.model.train()
        if self.schedule.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _move(self, images: Tensor) -> Tensor:
        return images.to(self._device, memory_format=self._format)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on: tensors and plain values."""
        cuda = self._device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "warm": WarmState(self.model).state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if cuda else None,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "tally": asdict(self._tally),
            "meter": self._meter.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        Args:
            state: As `state` returned it.

        Raises:
            CheckpointError: It does not fit this model.
        """
        try:
            self.model.load_state_dict(state["model"])
            WarmState(self.model).load_state_dict(state["warm"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
            self._tally = _Tally(**state["tally"])
            self._meter.restore(state["meter"])
            torch.set_rng_state(state["random"])
            if state["random_cuda"] is not None and self._device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"resume: the checkpoint does not fit this run: {error}") from error
