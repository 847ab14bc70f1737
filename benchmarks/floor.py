"""How far a training step is from what the machine could do: FLOPs, bytes moved, the floor, and the measured time.

    python benchmarks/floor.py --data-path PATH --weights mcunet.safetensors --networks mcunet

FLOPs and bytes are counted as step_cost.py says, on a step after a few others. The machine's rates are measured here: a
large square matrix product in the type of the operation, and a large copy, read and write counted; the best of several.

Three times come of it. Arithmetic is FLOPs over the rate of products; movement is bytes over the rate of the copy. The
floor is the sum over operations of the larger of the two: an operation can hide its movement behind its arithmetic, but
operations follow one another. Only a fused kernel, or a cache that holds a result for the next operation, goes below
it. Each method has a floor of its own; the last column divides by that of the first method. Step times are measured as
in speed.py.
"""

from dataclasses import asdict, dataclass

import torch
import tyro
from arms import NETWORKS, Network, Training, batches
from environment import environment, in_words
from machine import Machine
from rich.console import Console
from rich.table import Table
from step_cost import Operation, step_operations
from turns import Settings, compare, quartiles, write_record


@dataclass(frozen=True)
class Options(Settings):
    """What to hold against its floor."""

    networks: tuple[str, ...] = ("resnet18", "resnet34", "mobilenetv2", "mcunet", "swin-t")
    """Of those in arms.py."""
    methods: tuple[str, ...] = ("plain", "plain-channels-last", "dense", "hosvd-0.8", "subspace-0.8")
    """Of those in arms.py; the first is the one the others are divided by."""
    steps: int = 3
    """Training steps before the one that is counted."""
    product_size: int = 2048
    """Rows and columns of the matrices that the rate of products is measured with."""
    copy_mb: int = 256
    """Megabytes (10^6) that are copied to measure the rate of movement."""
    tries: int = 10
    """Tries at each rate, of which the best counts."""


@dataclass(frozen=True)
class Floor:
    """What a step costs, and the least time that this machine could take for it.

    Attributes:
        flops: Of products, convolutions and attention.
        bytes: Read and written.
        arithmetic: FLOPs over the rate of products, in seconds.
        movement: Bytes over the rate of the copy, in seconds.
        floor: Sum over operations of the larger of the two, in seconds.
    """

    flops: int
    bytes: int
    arithmetic: float
    movement: float
    floor: float


def floor_of(operations: list[Operation], machine: Machine) -> Floor:
    """Return what the operations cost on this machine."""
    arithmetic = [o.flops / machine.product(o.dtype) if o.flops else 0.0 for o in operations]
    movement = [o.bytes / machine.copy for o in operations]
    return Floor(
        sum(o.flops for o in operations),
        sum(o.bytes for o in operations),
        sum(arithmetic),
        sum(movement),
        sum(max(pair) for pair in zip(arithmetic, movement, strict=True)),
    )


def count(options: Options, network: Network, method: str) -> list[Operation]:
    """Return the operations of one step, after a few others."""
    device = torch.device(options.device)
    training = Training(network, method, device, options.weights)
    *before, last = batches(network, options.data, options.data_path, options.steps + 1, device)
    for pair in before:
        training.step(*training.take(*pair))
    return step_operations(training, *training.take(*last))


def main() -> None:
    """Count, measure, print a table a network and write the records."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    machine = Machine(torch.device(options.device), options.product_size, options.copy_mb, options.tries)
    for name in options.networks:
        network = NETWORKS[name]
        floors = {method: floor_of(count(options, network, method), machine) for method in options.methods}
        results = compare(options, network, options.methods)
        rates = {
            "copy_rate": machine.copy,
            "product_rates": {str(dtype).removeprefix("torch."): rate for dtype, rate in machine.products.items()},
        }
        table = Table(
            "method", "GFLOP", "GB moved", "arithmetic, s", "movement, s", "floor, s", "step, s", "step / floor",
            f"step / floor of {options.methods[0]}", title=name,
        )  # fmt: skip
        first = floors[options.methods[0]].floor
        for method, floor in floors.items():
            step = quartiles(results[method].seconds).middle
            numbers = (floor.flops / 1e9, floor.bytes / 1e9, floor.arithmetic, floor.movement, floor.floor, step)
            distance = {"step_over_floor": step / floor.floor, "step_over_first_floor": step / first}
            table.add_row(method, *(f"{n:.3f}" for n in numbers), *(f"{ratio:.2f}" for ratio in distance.values()))
            where = {"network": name, "method": method, "batch": network.batch, "resolution": network.resolution}
            write_record(options, where | asdict(floor) | distance | rates | results[method].record())
        console.print(table)
    rates_in_words = [f"{str(dtype).removeprefix('torch.')} {r / 1e9:.0f}" for dtype, r in machine.products.items()]
    console.print(f"products {', '.join(rates_in_words)} GFLOP/s, copy {machine.copy / 1e9:.1f} GB/s", highlight=False)
    console.print(in_words(environment(options.device, options.threads)), highlight=False)


if __name__ == "__main__":
    main()
