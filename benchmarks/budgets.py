"""How near training stays to a byte budget, step by step: the bytes held in each forward over the budget.

    python benchmarks/budgets.py --data-path PATH --weights mcunet.safetensors

A budget is so many times what the codec holds at its own setting on the first batch. Training is real: SGD with
momentum on real images, another batch each step.
"""

import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from arms import NETWORKS, Network, Training, batches
from environment import add_record, environment, in_words
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tuckprop
from tuckprop.codecs import codecs
from tuckprop.memory import census


@dataclass(frozen=True)
class Options:
    """What to train, within which budgets."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    network: str = "mcunet"
    """Of those in arms.py."""
    batch: int = 64
    """Images a step."""
    last: tuple[int, ...] = (4, 8, 16)
    """Trained convolutions, from the last."""
    codecs: tuple[str, ...] = ("hosvd", "hosvd8", "svd", "subspace")
    """Names of codecs."""
    times: tuple[float, ...] = (1.0, 1.5, 2.5)
    """Budgets, in units of what the codec holds by default."""
    steps: int = 100
    """Steps of a training."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """Append records to this file, one JSON object a line."""


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        budget: Bytes.
        held: Bytes held in each step's forward.
        changed: Steps before which, or in which, a site's setting was changed.
    """

    budget: int
    held: list[int]
    changed: int

    def beyond(self, share: float) -> int:
        """Return the number of steps that held more or less than the budget by this share."""
        return sum(abs(held / self.budget - 1) > share for held in self.held)


def start(network: Network, weights: Path | None) -> nn.Module:
    """Return the network as it is before training."""
    return Training(network, "plain", torch.device("cpu"), weights).model


def train(network: Network, options: Options, codec: str, times: float, served: list[tuple[Tensor, Tensor]]) -> Result:
    """Train on these batches within a budget."""
    (images, labels), chosen = served[0], codecs[codec]()
    default = tuckprop.convert(start(network, options.weights), chosen, last=network.last)
    budget = int(times * tuckprop.measure(default, lambda m: F.cross_entropy(m(images), labels)).held_bytes)
    model = start(network, options.weights)
    plan = tuckprop.plan(
        model, images, chosen, last=network.last, budget=budget, loss_fn=lambda out: F.cross_entropy(out, labels)
    )
    tuckprop.convert(model, plan)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.005, momentum=0.9)
    held, settings = [], []
    for x, y in served:
        with census(model) as counted:
            loss = F.cross_entropy(model(x), y)
            held.append(counted.held_bytes)
        settings.append([m._site.codec for m in model.modules() if isinstance(m, tuckprop.layers.Twin)])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
    return Result(budget, held, sum(a != b for a, b in itertools.pairwise(settings)))


def main() -> None:
    """Train within every budget and print one table."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    table = Table(
        "layers", "codec", "budget, KB", "least held", "most held", "steps off by over 5%", "over 10%", "changes",
        title=f"{options.network}, {options.steps} steps",
    )  # fmt: skip
    for last in options.last:
        network = replace(NETWORKS[options.network], batch=options.batch, last=last)
        served = list(batches(network, options.data, options.data_path, options.steps, torch.device("cpu")))
        for codec in options.codecs:
            for times in options.times:
                result = train(network, options, codec, times, served)
                shares = [held / result.budget for held in result.held]
                table.add_row(
                    str(last), codec, f"{result.budget / 1000:,.0f}", f"{min(shares):.3f}", f"{max(shares):.3f}",
                    str(result.beyond(0.05)), str(result.beyond(0.1)), str(result.changed),
                )  # fmt: skip
                where = {"network": options.network, "last": last, "codec": codec, "times": times}
                add_record(options.out, where | asdict(result), threads=options.threads)
    console.print(table)
    console.print(in_words(environment(threads=options.threads)), highlight=False)


if __name__ == "__main__":
    main()
