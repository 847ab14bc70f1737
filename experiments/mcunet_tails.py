"""Fine-tune the last convolutions of MCUNet on all of CIFAR-10, the frozen blocks in front computed once for all runs.

Without augmentation a frozen block gives the same for an image in each epoch, so what the first trained block is given
is computed once and kept on disk; the runs then train, validate and count the blocks behind it alone. What is trained,
in which order and from which weights is as in `tuckprop train` with the same settings (to rounding), and so is what is
held for backward, of which frozen blocks take nothing. Step times and peaks are those of the tail.

python experiments/mcunet_tails.py --data-path CIFAR10 --weights mcunet.safetensors --out runs/tails --last 4 8
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from tuckprop.codecs import Codec, codecs
from tuckprop.data import Served
from tuckprop.data._order import Order
from tuckprop.report.records import FILE as RECORD
from tuckprop.report.records import Record, read_record, write_record
from tuckprop.train.loop import Trainer
from tuckprop.train.prepare import Prepared, compress, prepare
from tuckprop.train.run import describe_environment, measure_memory, process_peak
from tuckprop.train.settings import Compression, DataSettings, Experiment, Machine, NetworkSettings, Schedule


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_path: Path
    """Folder with CIFAR-10."""
    weights: Path
    """MCUNet's ImageNet weights (safetensors)."""
    out: Path
    """Folder for the runs; one that is done is skipped."""
    last: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Numbers of trained convolutions."""
    seeds: list[int] = field(default_factory=lambda: [233])
    """Of split, order and classifier."""
    methods: list[str] = field(
        default_factory=lambda: [
            "plain", "gradient_filter:2", "gradient_filter:4", "gradient_filter:7", "svd:0.8", "hosvd:0.8",
            "hosvd8:0.95", "deflated_hosvd:0.95", "subspace:0.8",
        ]
    )  # fmt: skip
    """Names of codecs, each with its first setting; after recomputed_, blocks are computed again in backward."""
    steps: int = 1250
    """Steps of a run; the rate falls along a cosine."""
    validate_every: int = 625
    """Steps between validations."""
    learning_rate: float = 0.005
    """At the start."""
    resolution: int = 128
    """Pixels a side."""
    batch_size: int = 64
    """Images a batch."""


class Features:
    """What the first trained block is given, served in the order in which `tuckprop.data.Batches` serves images.

    Args:
        features: float32 [images, channels, height, width].
        labels: int64 [images].
        batch_size: Images a batch.
        drop_last: Leave the last batch away where it is not full.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, drop_last: bool) -> None:
        self._features, self._labels = features, labels
        self._order = Order(len(labels), batch_size, drop_last)

    def __len__(self) -> int:
        return self._order.batches

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch."""
        return self._order.shuffled(seed, epoch)

    def serve(self, order: Tensor | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of features and labels."""
        for chosen in self._order.cut(order, start):
            yield self._features[chosen], self._labels[chosen]


class Arrival(nn.Module):
    """Stands for the frozen blocks: a tensor that they made, which unlike a batch nobody holds."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()


def cut_before(model: nn.Module, last: int) -> int:
    """Return the number of the first block that holds one of the last `last` convolutions."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    first = names[-last]
    if not first.startswith("blocks."):
        raise SystemExit(f"last: expected at most {len(names) - 1}, as {first} is in front of the blocks, got {last}")
    return int(first.split(".")[1])


def split(model: nn.Module, block: int) -> tuple[nn.Module, nn.Sequential]:
    """Return what is in front of a block, and the rest, under the names that it has in the whole."""
    children = OrderedDict(model.named_children())
    blocks = list(children["blocks"].named_children())
    names = list(children)
    ahead = names[: names.index("blocks")]
    behind = names[names.index("blocks") + 1 :]
    front = nn.Sequential(*(children[name] for name in ahead), *(module for _, module in blocks[:block]))
    rest = nn.Sequential(OrderedDict(blocks[block:]))
    return front, nn.Sequential(
        OrderedDict([("front", Arrival()), ("blocks", rest), *((name, children[name]) for name in behind)])
    )


@torch.no_grad()
def features(front: nn.Module, batches: Served, path: Path) -> tuple[Tensor, Tensor]:
    """Return what `front` makes of all images, and their labels; kept in a file, from which it is read another time."""
    if not path.exists():
        front.eval().to(memory_format=torch.channels_last)
        parts = [(front(x.contiguous(memory_format=torch.channels_last)), y) for x, y in batches.serve()]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save((torch.cat([x.contiguous() for x, _ in parts]), torch.cat([y for _, y in parts])), partial)
        partial.rename(path)
    images, labels = torch.load(path, mmap=True)
    return images, labels


def parse(method: str) -> Codec | None:
    """Return the codec of a name such as hosvd:0.8; None for plain."""
    name, _, value = method.removeprefix("recomputed_").partition(":")
    if name == "plain":
        return None
    return codecs[name](*([] if not value else [int(value) if value.isdigit() else float(value)]))


def prepared_tail(options: Options, experiment: Experiment, last: int) -> Prepared:
    """Return the tail of the network, and the features that it is given, as if they were network and data."""
    # All images of both parts are served, whatever `drop_last` of the run.
    whole = prepare(experiment.network, replace(experiment.data, drop_last=False), Machine(), experiment.schedule.seed)
    block = cut_before(whole.model, last)
    front, tail = split(whole.model, block)
    parts = {}
    for part, batches, drop in (("train", whole.data.train, True), ("val", whole.data.val, False)):
        path = options.out / "features" / f"block{block}-{part}-seed{experiment.schedule.seed}.pt"
        images, labels = features(front, batches, path)
        parts[part] = Features(images, labels, batch_size=options.batch_size, drop_last=drop)
    return replace(whole, model=tail, data=replace(whole.data, **parts))


def train(options: Options, experiment: Experiment, last: int, out: Path) -> Record:
    """Train one tail; leave its record in `out`."""
    prepared = prepared_tail(options, experiment, last)
    sites = compress(prepared, experiment.compression)
    trainer = Trainer(prepared.model, experiment.schedule, task=prepared.task, sites=sites)
    before = process_peak(prepared.device)
    trainer.train(prepared.data.train, prepared.data.val)
    memory = measure_memory(trainer, prepared, before)
    environment = describe_environment(prepared) | {
        "front": "frozen blocks computed once (experiments/mcunet_tails.py)"
    }
    record = Record(experiment.method(), experiment.flat(), environment, sites, tuple(trainer.epochs), memory)
    out.mkdir(parents=True, exist_ok=True)
    write_record(record, out / RECORD)
    return record


def main() -> None:
    """Run all methods for all seeds and numbers of layers, one after the other."""
    options = tyro.cli(Options)
    for seed in options.seeds:
        for last in options.last:
            for method in options.methods:
                out = options.out / f"{method.replace(':', '')}-last{last}-seed{seed}"
                if (out / RECORD).exists() and read_record(out / RECORD).finished:
                    continue
                experiment = Experiment(
                    NetworkSettings("mcunet", options.weights),
                    DataSettings(
                        "cifar10", options.data_path, resolution=options.resolution, batch_size=options.batch_size
                    ),
                    Compression(parse(method), last=last, recompute=method.startswith("recomputed_")),
                    Schedule(
                        steps=options.steps,
                        validate_every=options.validate_every,
                        learning_rate=options.learning_rate,
                        momentum=0.9,
                        seed=seed,
                    ),
                )
                record = train(options, experiment, last, out)
                accuracy = ", ".join(f"{100 * epoch.val_accuracy:.2f}" for epoch in record.epochs)
                assert record.memory is not None
                held = record.memory.held_bytes / 1e3
                print(f"{record.method} last {last} seed {seed}: {accuracy} % {held:.0f} KB held", flush=True)


if __name__ == "__main__":
    main()
