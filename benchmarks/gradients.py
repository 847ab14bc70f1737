"""Gradient error by kind of layer: the cosine of each parameter's gradient with the exact one, on real images.

    python benchmarks/gradients.py --data-path PATH --weights mcunet.safetensors

One batch, one model: plain gradients first, then each method's on the same weights. Random weights (all networks but
MCUNet) make activations of a higher rank than training does: `--train N` takes N plain steps before.
"""

import copy
import statistics
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from arms import METHODS, NETWORKS, SEED, Network, Training, batches
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """What to compare."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    networks: tuple[str, ...] = ("mcunet", "mobilenetv2", "resnet18", "swin-t")
    """Of those in arms.py, or timm:NAME, which are trained at 224 x 224 in batches of 8."""
    methods: tuple[str, ...] = ("dense", "hosvd-0.8", "svd-0.8", "subspace-0.8")
    """Of those in arms.py."""
    train: int = 0
    """Plain training steps before."""
    threads: int = 2
    """CPU threads."""


def kind(model: nn.Module, name: str) -> str:
    """Return what a parameter belongs to, such as "depthwise convolution"."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Conv2d):
        if owner.groups > 1:
            layer = "depthwise convolution"
        else:
            layer = "1x1 convolution" if owner.kernel_size == (1, 1) else "convolution"
    elif isinstance(owner, nn.Linear):
        layer = "linear"
    else:
        layer = "norm" if "norm" in type(owner).__name__.lower() else "other"
    return f"{layer}, {name.rpartition('.')[2]}"


def gradients(training: Training, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return every parameter's gradient."""
    torch.manual_seed(SEED)  # One drop path for all.
    training.model.zero_grad()
    training.loss(images, labels).backward()
    return {name: p.grad.detach().clone() for name, p in training.model.named_parameters() if p.grad is not None}


def main() -> None:
    """Compare and print a table a network."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    for network in options.networks:
        trained = NETWORKS.get(network) or Network(network, batch=8, resolution=224)
        plain = Training(trained, "plain", torch.device("cpu"), options.weights)
        served = list(batches(trained, options.data, options.data_path, options.train + 1, torch.device("cpu")))
        for pair in served[:-1]:
            plain.step(*pair)
        state = copy.deepcopy(plain.model.state_dict())
        exact = gradients(plain, *served[-1])
        kinds: dict[str, list[str]] = {}
        for name in (n for n, gradient in exact.items() if gradient.any()):  # Of zero there is no direction.
            kinds.setdefault(kind(plain.model, name), []).append(name)
        table = Table("gradient of", "parameters", *options.methods, title=f"{network}: median cosine (least)")
        columns: dict[str, dict[str, Tensor]] = {}
        for method in options.methods:
            plain.model.load_state_dict(state)
            arm = copy.copy(plain)
            arm.model = METHODS[method].prepare(copy.deepcopy(plain.model), plain.network.last)
            columns[method] = gradients(arm, *served[-1])
        rows = {**dict(sorted(kinds.items())), "all in one vector": list(chain(*kinds.values()))}
        for label, names in rows.items():
            cells = []
            for found in columns.values():
                if label in kinds:
                    cosines = [
                        float(F.cosine_similarity(found[n].flatten().double(), exact[n].flatten().double(), 0))
                        for n in names
                    ]
                else:
                    whole = [torch.cat([part[n].flatten().double() for n in names]) for part in (found, exact)]
                    cosines = [float(F.cosine_similarity(*whole, 0))]
                cells.append(f"{statistics.median(cosines):.4f} ({min(cosines):.3f})")
            table.add_row(label, str(len(names)), *cells)
        console.print(table)
        console.print(f"{options.train} plain steps before; {in_words(environment())}", highlight=False)


if __name__ == "__main__":
    main()
