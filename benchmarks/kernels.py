"""Compiled kernels against what PyTorch has for the same, and against what the machine could do.

    OMP_NUM_THREADS=2 python benchmarks/kernels.py [--markdown]

Each on sizes that a network's layers have, in float32 if nothing else is said; runs of the two alternate, and the
process keeps freed memory, so that neither waits for pages. The floor is the larger of two times: FLOPs over the rate
of a large product, and bytes that have to be read and written over the rate of a large copy. FLOPs are those of the
sums as they are written: Winograd's algorithm does with four ninths of them; an eigenproblem counts its reduction to
tridiagonal form alone.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
import tyro
from environment import add_record, environment, in_words
from machine import Machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tuckprop import native
from tuckprop.layers import _depthwise, _one_tap
from tuckprop.layers._plain_convolution import plain_gradients
from tuckprop.layers.conv import geometry_of
from tuckprop.layers.linear import products_of_columns
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.fitted_code import fit
from tuckprop.linalg.leading import leading_eigh
from tuckprop.linalg.modes import mode_gram, mode_product
from tuckprop.linalg.standardised import Standardised
from tuckprop.memory import keep_freed_memory

BATCH = 32


@dataclass(frozen=True)
class Options:
    """What to time."""

    repeats: int = 15
    """Runs of each, of which the median counts."""
    threads: int = 2
    """CPU threads."""
    markdown: bool = False
    """Print rows of a Markdown table."""
    out: Path | None = None
    """Add records to this JSONL file."""


@dataclass(frozen=True)
class Case:
    """One operation, done in two ways.

    Attributes:
        name: What it does, and on what.
        ours: Does it by a compiled kernel.
        library: Does it by PyTorch's operations.
        flops: Of its sums as they are written; a multiply and an add are two.
        bytes: That have to be read and written.
    """

    name: str
    ours: Callable[[], object]
    library: Callable[[], object]
    flops: int
    bytes: int


def projections() -> Iterator[Case]:
    """Yield products with a basis, of channels and of columns, and a Linear layer's weight gradient at few columns."""
    for channels, side, rank in ((96, 64, 14), (144, 32, 17), (192, 16, 23)):
        yield _of_channels(channels, side, rank)
    yield _of_bfloat16(96, 64, 14)
    x, basis = torch.randn(BATCH, 192, 10, 16), torch.randn(16, 10)
    yield Case(
        "16 columns to 10",
        lambda: mode_product(x, basis, 3),
        lambda: x @ basis,
        2 * x.numel() * 10,
        x.nbytes * 26 // 16,
    )
    grad, core = torch.randn(12544, 384), torch.randn(12544, 3)
    yield Case(
        "12,544 rows of 384, transposed, times 3 columns",
        lambda: products_of_columns(grad, core),
        lambda: grad.T @ core,
        2 * grad.numel() * 3,
        grad.nbytes,
    )


def _of_channels(channels: int, side: int, rank: int) -> Case:
    x, basis = torch.randn(BATCH, channels, side, side), torch.randn(channels, rank)
    rows = x.flatten(2)
    return Case(
        f"{channels} channels of {side} x {side} to {rank}",
        lambda: mode_product(x, basis, 1),
        lambda: torch.bmm(basis.T.expand(BATCH, -1, -1), rows),
        2 * x.numel() * rank,
        x.nbytes * (channels + rank) // channels,
    )


def _of_bfloat16(channels: int, side: int, rank: int) -> Case:
    x, basis = torch.randn(BATCH, channels, side, side).bfloat16(), torch.randn(channels, rank)
    return Case(
        f"{channels} channels of {side} x {side} in bfloat16 to {rank}",
        lambda: mode_product(x, basis, 1),
        lambda: torch.bmm(basis.T.expand(BATCH, -1, -1), x.float().flatten(2)),
        2 * x.numel() * rank,
        x.nbytes * (channels + 2 * rank) // channels,
    )


def gram_matrices() -> Iterator[Case]:
    """Yield Gram matrices of channels, and of rows that do not fill vectors; half of each is computed."""
    for channels, side in ((96, 64), (192, 16), (576, 8)):
        yield _gram_of_channels(channels, side)
    core = torch.randn(BATCH, 10500)
    yield Case(
        "Gram matrix of 32 rows of 10,500",
        lambda: mode_gram(core, 0),
        lambda: core @ core.T,
        core.numel() * BATCH,
        core.nbytes,
    )


def _gram_of_channels(channels: int, side: int) -> Case:
    x = torch.randn(BATCH, channels, side, side)
    rows = x.flatten(2)
    return Case(
        f"Gram matrix of {channels} channels of {side} x {side}",
        lambda: mode_gram(x, 1),
        lambda: torch.bmm(rows, rows.transpose(1, 2)).sum(0),
        x.numel() * channels,
        x.nbytes,
    )


def eigenproblems() -> Iterator[Case]:
    """Yield the leading eigenpairs of Gram matrices of what a rectifier leaves, with four fifths of the energy."""
    for size in (32, 144, 384, 576):
        rows = torch.randn(size, 2048).clamp_min(0) * torch.linspace(1, 0.1, size)[:, None]
        gram = rows @ rows.T
        yield _of_gram_matrix(gram)


def _of_gram_matrix(gram: Tensor) -> Case:
    size = len(gram)
    return Case(
        f"leading eigenpairs of a Gram matrix of {size}",
        lambda: leading_eigh(gram, 0.8),
        lambda: torch.linalg.eigh(gram),
        4 * size**3 // 3,
        gram.nbytes,
    )


def convolutions() -> Iterator[Case]:
    """Yield 3 x 3 convolutions and their gradients, those of depthwise layers, and of a strided one of one tap."""
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        yield from _of_three_taps(channels, side)
    yield from _depthwise_cases()
    x, grad, weight = torch.randn(BATCH, 64, 32, 32), torch.randn(BATCH, 128, 16, 16), torch.randn(128, 64, 1, 1)
    geometry = geometry_of((1, 1), 2, 0, 1)
    yield Case(
        "64 to 128 channels of 32 x 32, one tap, stride 2: input's gradient",
        lambda: _one_tap.input_gradient(grad, weight, x.shape, geometry),
        lambda: plain_gradients(grad, x, weight, geometry, (True, False, False)),
        2 * grad.numel() * 64,
        x.nbytes + grad.nbytes,
    )


def _of_three_taps(channels: int, side: int) -> Iterator[Case]:
    x, grad = (torch.randn(BATCH, channels, side, side) for _ in range(2))
    weight, geometry = torch.randn(channels, channels, 3, 3), geometry_of((3, 3), 1, 1, 1)
    name, flops = f"{channels} channels of {side} x {side}, 3 x 3 taps", 2 * 9 * channels * x.numel()
    y, out, taps = torch.empty_like(x), torch.empty_like(x), torch.empty_like(weight)
    moved = x.nbytes + grad.nbytes + weight.nbytes
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "output": (
            lambda: native.winograd(x, weight, None, y, (1, 1)),
            lambda: F.conv2d(x, weight, padding=1),
        ),
        "input's gradient": (
            lambda: native.winograd_input(grad, weight, out, (1, 1)),
            lambda: plain_gradients(grad, x, weight, geometry, (True, False, False)),
        ),
        "weight's gradient": (
            lambda: native.winograd_weight(x, grad, taps, (1, 1)),
            lambda: plain_gradients(grad, x, weight, geometry, (False, True, False)),
        ),
    }
    for what, (ours, library) in ways.items():
        yield Case(f"{name}: {what}", ours, library, flops, moved)


def _depthwise_cases() -> Iterator[Case]:
    x, grad, weight = torch.randn(BATCH, 192, 16, 16), torch.randn(BATCH, 192, 16, 16), torch.randn(192, 1, 3, 3)
    geometry, flops, moved = geometry_of((3, 3), 1, 1, 1, 192), 2 * 9 * x.numel(), x.nbytes + grad.nbytes
    name = "192 channels of 16 x 16, depthwise 3 x 3 taps"
    yield Case(
        f"{name}: output",
        lambda: _depthwise.output(x, weight, None, geometry),
        lambda: F.conv2d(x, weight, padding=1, groups=192),
        flops,
        moved,
    )
    yield Case(
        f"{name}: input's gradient",
        lambda: _depthwise.input_gradient(grad, weight, x.shape, geometry),
        lambda: plain_gradients(grad, x, weight, geometry, (True, False, False)),
        flops,
        moved,
    )


def norms() -> Iterator[Case]:
    """Yield a batch norm's backward from a factored input, and the codes of a norm's input, with what they lose."""
    for channels, side, rank in ((96, 64, 8), (144, 32, 13), (576, 8, 52)):
        yield _of_factored_norm(channels, side, rank)
    for channels, side, bits in ((144, 32, 2), (960, 4, 4)):
        yield _of_codes(channels, side, bits)


def _of_factored_norm(channels: int, side: int, rank: int) -> Case:
    grad, core = torch.randn(BATCH, channels, side, side), torch.randn(BATCH, rank, side, side)
    factor, scale, out = torch.randn(channels, rank), torch.rand(channels), torch.empty_like(grad)
    zeros, ones = torch.zeros(channels), torch.ones(channels)

    def library() -> object:
        normalised = torch.matmul(factor, core.flatten(2)).view_as(grad)
        statistics = (None, None, zeros, ones)
        return torch.ops.aten.native_batch_norm_backward(grad, normalised, scale, *statistics, True, 0.0, [True] * 3)

    return Case(
        f"batch norm's backward, {channels} channels of {side} x {side} kept as {rank}",
        lambda: native.batch_norm_factored(grad, core, factor, scale, out, True),
        library,
        2 * grad.numel() * rank,
        2 * grad.nbytes + core.nbytes,
    )


def _of_codes(channels: int, side: int, bits: int) -> Case:
    x, shift = torch.randn(BATCH, channels, side, side), torch.zeros(1, channels, 1, 1)
    scale, energy = torch.ones(1, channels, 1, 1), float(x.double().square().sum())
    source, code = Standardised(x, shift, scale, Energy(x.sum())), fit(x, energy, bits)

    def library() -> object:
        with patch.object(native, "available", return_value=False):
            return code.encode(source, energy)

    name = f"{bits}-bit codes of {channels} channels of {side} x {side}, standardised, and what they lose"
    return Case(name, lambda: code.encode(source, energy), library, 0, x.nbytes + x.numel() * bits // 8)


def milliseconds(case: Case, repeats: int) -> tuple[float, float]:
    """Return the medians of both ways, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):
        for run, taken in zip((case.ours, case.library), times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - start))
    return median(times[0][2:]), median(times[1][2:])


def main() -> None:
    """Time every case, print a table and write the records."""
    options = tyro.cli(Options)
    if not native.serves(torch.empty(1)):
        raise SystemExit("there is no C compiler, or TUCKPROP_NATIVE is 0: there are no kernels to time")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    machine = Machine(torch.device("cpu"))
    table = Table("operation, batch 32", "PyTorch, ms", "kernel, ms", "ratio", "floor, ms", "kernel / floor")
    for case in (*projections(), *gram_matrices(), *eigenproblems(), *norms(), *convolutions()):
        ours, library = milliseconds(case, options.repeats)
        floor = 1e3 * max(case.flops / machine.product(torch.float32), case.bytes / machine.copy)
        row = (case.name, *(f"{n:.2f}" for n in (library, ours, ours / library, floor)), f"{ours / floor:.1f}")
        table.add_row(*row)
        if options.markdown:
            print(f"| {' | '.join(row)} |", flush=True)
        record = {"operation": case.name, "flops": case.flops, "bytes": case.bytes}
        add_record(options.out, record | {"library_ms": library, "kernel_ms": ours, "floor_ms": floor})
    Console(width=140).print(table)
    print(f"products {machine.product(torch.float32) / 1e9:.0f} GFLOP/s, copy {machine.copy / 1e9:.1f} GB/s")
    print(in_words(environment()))


if __name__ == "__main__":
    main()
