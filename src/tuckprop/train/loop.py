"""The training loop: plain SGD that knows nothing of codecs, may stop after any step and goes on to the same result."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tuckprop.data import Served
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.memory import PaperCounter
from tuckprop.report.records import Epoch
from tuckprop.train.settings import Schedule
from tuckprop.train.warm import restore_warm_state, warm_state
from tuckprop.train.watch import Silent, Step, Watch


@dataclass
class _Tally:
    """What the steps of the running epoch add up to."""

    steps: int = 0
    images: int = 0
    right: int = 0
    loss: float = 0.0
    paper_bytes: list[int] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Trainer:
    """A model in training.

    Args:
        model: On its device, frozen where it is to be; its trainable parameters are updated.
        schedule: How.
        sites: Names of the layers whose activations the paper counts.
        channels_last: Hand images over channels last in memory.

    Attributes:
        epochs: The epochs that are finished.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, *, sites: tuple[str, ...] = (), channels_last: bool = False
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.sites = sites
        self.epochs: list[Epoch] = []
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._trainable = trainable
        self._device = trainable[0].device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._optimizer = torch.optim.SGD(
            trainable, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        self._tally = _Tally()

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
            ConfigError: The loss is not finite any more.
        """
        watch = watch or Silent()
        with PaperCounter(self.model, self.sites) as counter:
            while len(self.epochs) < self.schedule.epochs:
                if not self._train_epoch(train, counter, stop, watch):
                    save()
                    return False
                self._finish_epoch(val)
                save()
                watch.on_epoch(self.epochs[-1])
        return True

    def _train_epoch(self, train: Served, counter: PaperCounter, stop: Callable[[], bool], watch: Watch) -> bool:
        tally = self._tally
        number = len(self.epochs) + 1
        order = train.shuffled(self.schedule.seed, number)
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.rate(number)
        self._train_mode()
        begun = perf_counter()
        for images, labels in train.serve(order, start=tally.steps):
            loss, right = self._step(images, labels)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"training diverged: the loss is {loss} in epoch {number}, step {tally.steps + 1}; use a smaller "
                    f"learning rate than {self.schedule.learning_rate:g}"
                )
            ended = perf_counter()
            tally.steps += 1
            tally.images += len(labels)
            tally.right += right
            tally.loss += loss * len(labels)
            tally.paper_bytes.append(counter.take())
            tally.step_seconds.append(ended - begun)
            tally.seconds += ended - begun
            begun = ended
            shares = tally.loss / tally.images, tally.right / tally.images
            watch.on_step(Step(number, tally.steps, len(train), *shares, tally.paper_bytes[-1]))
            if stop():
                return False
        return True

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Return the batch's mean loss and how many of it were right."""
        images, labels = self._move(images), labels.to(self._device)
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self.model(images)
        loss = F.cross_entropy(outputs, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trainable, self.schedule.clip)
        self._optimizer.step()
        return loss.item(), int((outputs.detach().argmax(1) == labels).sum())

    def _finish_epoch(self, val: Served) -> None:
        begun = perf_counter()
        val_loss, val_accuracy = self.evaluate(val)
        tally, self._tally = self._tally, _Tally()
        self.epochs.append(
            Epoch(
                epoch=len(self.epochs) + 1,
                loss=tally.loss / tally.images,
                train_accuracy=tally.right / tally.images,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                learning_rate=self._optimizer.param_groups[0]["lr"],
                paper_bytes=sum(tally.paper_bytes) / tally.steps,
                step_seconds=median(tally.step_seconds),
                seconds=tally.seconds + perf_counter() - begun,
            )
        )

    @torch.no_grad()
    def evaluate(self, batches: Served) -> tuple[float, float]:
        """Return mean loss and accuracy over all images of `batches`."""
        self.model.eval()
        loss, right, count = 0.0, 0, 0
        for images, labels in batches.serve():
            outputs, labels = self.model(self._move(images)), labels.to(self._device)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            right += int((outputs.argmax(1) == labels).sum())
            count += len(labels)
        return loss / count, right / count

    def first_loss(self, train: Served) -> Callable[[nn.Module], Tensor]:
        """Put the model in train mode; return its loss on the first batch as a function, for `tuckprop.measure`."""
        self._train_mode()
        images, labels = next(train.serve())
        images, labels = self._move(images), labels.to(self._device)
        return lambda model: F.cross_entropy(model(images), labels)

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
            "warm": warm_state(self.model),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if cuda else None,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "tally": asdict(self._tally),
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
            restore_warm_state(self.model, state["warm"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
            self._tally = _Tally(**state["tally"])
            torch.set_rng_state(state["random"])
            if state["random_cuda"] is not None and self._device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"resume: the checkpoint does not fit this run: {error}") from error
