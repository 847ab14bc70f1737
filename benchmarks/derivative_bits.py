"""Accuracy and gradient error over the bits that smooth activations keep of their derivative: how 4 was chosen.

    python benchmarks/derivative_bits.py

A small network with batch norm and GELU (or another activation) is trained from scratch on scikit-learn's digits, plain
and with 1, 2, 4 and 8 bits. Nothing else is approximate. The cosine is that of the whole gradient with the exact one,
on the first batch after training.
"""

import statistics
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
import tyro
from environment import environment, in_words
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tuckprop
from tuckprop.data import load
from tuckprop.layers.smooth import FewBitTwin

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "mish": nn.Mish}


@dataclass(frozen=True)
class Options:
    """What to train."""

    activations: tuple[str, ...] = ("gelu", "silu", "tanh")
    """Of gelu, silu, tanh, mish."""
    bits: tuple[int, ...] = (1, 2, 4, 8)
    """Of 1, 2, 4, 8; plain training comes besides."""
    depth: int = 8
    """Convolutions, each with batch norm and activation: errors of the derivative multiply over depth."""
    epochs: int = 8
    """Passes over the training images."""
    seeds: int = 5
    """Runs of each, from seed 1 on."""
    threads: int = 1
    """CPU threads."""


def network(activation: type[nn.Module], depth: int, bits: int | None) -> nn.Module:
    """Return the network, its activations converted unless `bits` is None."""
    widths = [1, *[24] * depth]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), activation())
        for a, b in pairwise(widths)
    ]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    if bits is None:
        return model
    tuckprop.convert(model, tuckprop.HOSVD(0.8))
    for name, module in list(model.named_modules()):
        if not isinstance(module, FewBitTwin) and isinstance(module, tuckprop.layers.Twin):
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, tuckprop.revert(module))
        elif isinstance(module, FewBitTwin):
            module.derivative_bits = bits
    return model


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of all parameters in one vector."""
    loss = F.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def train(options: Options, activation: str, bits: int | None, seed: int) -> tuple[float, float]:
    """Return validation accuracy and the cosine of the gradient with the exact one."""
    data = load("digits", seed=seed, batch_size=32)
    torch.manual_seed(seed)
    model = network(ACTIVATIONS[activation], options.depth, bits)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        model.train()
        for images, labels in data.train.serve(data.train.shuffled(seed, epoch)):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    plain = network(ACTIVATIONS[activation], options.depth, None)
    plain.load_state_dict(model.state_dict())
    batch = next(iter(data.train.serve()))
    cosine = F.cosine_similarity(gradient(model, *batch), gradient(plain, *batch), 0)
    model.eval()
    with torch.no_grad():
        hits = [(model(images).argmax(1) == labels).float() for images, labels in data.val.serve()]
    return float(torch.cat(hits).mean()), float(cosine)


def main() -> None:
    """Train every activation at every number of bits and print the table."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    table = Table("activation", "bits", "validation accuracy, %", "sd", "cosine of the gradient, median", "least")
    for activation in options.activations:
        for bits in (None, *options.bits):
            runs = [train(options, activation, bits, seed) for seed in range(1, options.seeds + 1)]
            accuracies, cosines = zip(*runs, strict=True)
            table.add_row(
                activation,
                "exact" if bits is None else str(bits),
                f"{100 * statistics.mean(accuracies):.2f}",
                f"{100 * statistics.stdev(accuracies):.2f}",
                f"{statistics.median(cosines):.5f}",
                f"{min(cosines):.5f}",
            )
    Console(width=120).print(table)
    where = in_words(environment(seed=1))
    print(
        f"depth {options.depth}, {options.epochs} epochs, {options.seeds} seeds, of which the first is below; {where}"
    )


if __name__ == "__main__":
    main()
