"""All that decides a run, as data: frozen, printable, comparable. The defaults are the paper's."""

from dataclasses import asdict, dataclass, field, fields
from math import cos, pi
from pathlib import Path
from typing import Any

from tuckprop.codecs import Codec, codecs
from tuckprop.errors import ConfigError


@dataclass(frozen=True)
class NetworkSettings:
    """Which network.

    Attributes:
        model: Name of a network, or timm:NAME; by default the one that fits the data set.
        weights: A file of weights to start from (.safetensors or .pt).
        pretrained: Start from the network's public ImageNet weights, which are downloaded where they are not yet there.
    """

    model: str | None = None
    weights: Path | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class DataSettings:
    """Which images.

    Attributes:
        data: Name of a data set.
        data_path: Where its files are: a folder or a zip.
        resolution: Pixels a side that the network sees; by default the data set's own.
        train_size: Train on so many images, the same number of every class; by default on all (80%).
        val_size: Validate on so many, likewise; by default on all (20%).
        batch_size: Images a batch.
        drop_last: Leave the last training batch of an epoch away where it is not full.
        half: Use only half 0 or 1 of the training images, which share few classes (the paper's set-up B: pretrain on 0,
            fine-tune on 1).
    """

    data: str = "digits"
    data_path: Path | None = None
    resolution: int | None = None
    train_size: int | None = None
    val_size: int | None = None
    batch_size: int = 128
    drop_last: bool = True
    half: int | None = None


@dataclass(frozen=True)
class Compression:
    """How activations are kept.

    Attributes:
        codec: The method; None trains the plain model.
        last: Train the last so many convolutions (Linear layers in a transformer) and what follows them; None trains
            and compresses all.
        select: Compress, and count, only layers whose name matches this pattern, as in `fnmatch`.
        paper_layers: 5 or 10: train and compress the layers that the paper's code does there in this segmentation
            network (`zoo.paper_layers`, `zoo.paper_trained`), instead of `last` and `select`.
        paper_patches: Give each of those layers the patch that Gradient Filter's authors gave it (`zoo.paper_patches`),
            instead of the codec's.
        train_only: Names of modules, such as decoder and classifier: train these with all that they contain, compress
            what is in them, and freeze the rest, instead of `last` and `paper_layers`. Batch norms that are frozen so
            go on following the data's statistics where `freeze_norms` is off.
        pointwise: Convert norms, activations, pools and dropout too.
        recompute: Keep the input of each of the network's blocks alone, and compute the block again in backward
            (`tuckprop.recompute`).
        budget: Bytes that a batch may hold for backward, such as 64MB; each layer's setting is then chosen on the first
            batch.
    """

    codec: Codec | None = None
    last: int | None = None
    select: str | None = None
    paper_layers: int | None = None
    paper_patches: bool = False
    train_only: tuple[str, ...] | None = None
    pointwise: bool = True
    recompute: bool = False
    budget: str | None = None


@dataclass(frozen=True)
class Schedule:
    """How weights are updated: SGD, its learning rate rising along a line and then falling along a cosine.

    The length is in epochs, and the rate then changes from epoch to epoch; or it is in steps, and the rate changes from
    step to step. The paper's fine-tuning of classifiers is the default; its training on ImageNet has 90 epochs, a
    warm-up of 4 from a share of 0.25, and a final share of 0; its segmentation has 20000 steps, a warm-up of 1000 from
    a share of 0.1, learning rate 0.01, final share 0.01, momentum 0.9, weight decay 5e-4, clip 1, and validates every
    2000 steps.

    Attributes:
        epochs: Passes over the training images; without effect where `steps` is given.
        steps: Length in steps, instead of `epochs`.
        validate_every: Steps from one validation and checkpoint to the next, which count as an epoch in the record; by
            default as many as a pass has. For a length in steps.
        warmup: Epochs (steps where the length is in steps) in which the rate rises to `learning_rate`.
        warmup_share: Share of it that the rate rises from.
        learning_rate: At the start, or after the warm-up.
        final_share: Share of it that the cosine falls to.
        momentum: Of SGD, from 0 to below 1.
        weight_decay: Of SGD.
        clip: Largest L2 norm of the whole gradient.
        freeze_norms: Keep batch norms in eval mode: their statistics stay, their weights are trained.
        seed: Of initial weights, split and order.
    """

    epochs: int = 50
    steps: int | None = None
    validate_every: int | None = None
    warmup: int = 0
    warmup_share: float = 0.1
    learning_rate: float = 0.05
    final_share: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 1e-4
    clip: float = 2.0
    freeze_norms: bool = True
    seed: int = 233

    @property
    def length(self) -> int:
        """Epochs, or steps where the length is in steps."""
        return self.epochs if self.steps is None else self.steps

    def rate(self, done: int) -> float:
        """Return the learning rate after `done` epochs, or steps where the length is in steps."""
        if done < self.warmup:
            return self.learning_rate * (self.warmup_share + (1 - self.warmup_share) * done / self.warmup)
        low = self.learning_rate * self.final_share
        turn = pi * (done - self.warmup) / (self.length - self.warmup)
        return low + (self.learning_rate - low) * (1 + cos(turn)) / 2

    def check(self) -> None:
        """Check that every value can be used.

        Raises:
            ConfigError: One cannot.
        """
        least = {"epochs": 1, "steps": 1, "validate_every": 1, "warmup": 0, "warmup_share": 0}
        least |= {"momentum": 0, "weight_decay": 0, "seed": 0, "final_share": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ConfigError(f"{name}: expected at least {lowest}, got {value!r}")
        if not self.momentum < 1:
            raise ConfigError(f"momentum: expected less than 1, got {self.momentum!r}; 0.9 is common")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a number over 0, got {getattr(self, name)!r}")
        if self.warmup >= self.length:
            unit = "epochs" if self.steps is None else "steps"
            raise ConfigError(f"warmup: expected less than the length, {self.length} {unit}, got {self.warmup}")
        if self.validate_every is not None and self.steps is None:
            raise ConfigError(
                f"validate_every: expected a length in steps beside it (steps), got {self.validate_every} alone; "
                "a length in epochs is validated after each"
            )


@dataclass(frozen=True)
class Machine:
    """Where it runs. Nothing here changes what is computed, beyond rounding.

    Attributes:
        device: Such as cpu or cuda:0; by default a GPU where there is one.
        threads: CPU threads; by default as many as PyTorch takes.
        channels_last: Keep images channels last in memory, which speeds up convolutions.
    """

    device: str | None = None
    threads: int | None = None
    channels_last: bool = False


@dataclass(frozen=True)
class Experiment:
    """One run."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    compression: Compression = field(default_factory=Compression)
    schedule: Schedule = field(default_factory=Schedule)
    machine: Machine = field(default_factory=Machine)

    def flat(self) -> dict[str, Any]:
        """Return all settings in one dictionary of JSON values; the codec becomes its name and its own settings."""
        entries: dict[str, Any] = {}
        for part in (self.network, self.data, self.compression, self.schedule, self.machine):
            entries |= asdict(part)
        codec = self.compression.codec
        entries["codec"] = "plain" if codec is None else codec_name(codec)
        entries["codec_settings"] = {} if codec is None else asdict(codec)
        return {key: str(value) if isinstance(value, Path) else value for key, value in entries.items()}

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share: all but where files are and where it runs."""
        elsewhere = {"weights", "data_path", *asdict(self.machine)}
        return {key: value for key, value in self.flat().items() if key not in elsewhere}

    def method(self) -> str:
        """Return a method's name for tables and plots, such as "HOSVD 0.8": its first setting and unusual ones."""
        codec = self.compression.codec
        if codec is None:
            return "plain"
        if self.compression.paper_patches:
            return f"{codec.label}, patches by layer"
        if self.compression.budget is not None:
            return f"{codec.label}, budget {self.compression.budget}"
        prefix = "recomputed " if self.compression.recompute else ""
        values = [(setting, getattr(codec, setting.name)) for setting in fields(codec)]
        unusual = [f"{setting.name} {value}" for setting, value in values[1:] if value != setting.default]
        return prefix + ", ".join([" ".join([codec.label, *(str(value) for _, value in values[:1])]), *unusual])


def codec_name(codec: Codec) -> str:
    """Return the name that a codec's class is registered under."""
    return next(name for name in codecs if codecs[name] is type(codec))
