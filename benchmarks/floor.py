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

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import tyro
from arms import NETWORKS, Network, Training, batches
from environment import environment, in_words
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


class Machine:
    """Measured rates of this machine, with the threads that PyTorch has now."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._device = torch.device(options.device)
        self.products: dict[torch.dtype, float] = {}
        source = torch.ones(options.copy_mb * 10**6 // 4, device=self._device)
        target = torch.zeros_like(source)
        self.copy = 2 * source.nbytes / self._best(lambda: target.copy_(source))

    def product(self, dtype: torch.dtype) -> float:
        """Return FLOPs a second of a square matrix product in that type."""
        if dtype not in self.products:
            n = self._options.product_size
            a, b = (torch.randn(n, n, device=self._device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            self.products[dtype] = 2 * n**3 / self._best(lambda: torch.mm(a, b, out=out))
        return self.products[dtype]

    def floor(self, operations: list[Operation]) -> Floor:
        """Return what the operations cost here."""
        arithmetic = [o.flops / self.product(o.dtype) if o.flops else 0.0 for o in operations]
        movement = [o.bytes / self.copy for o in operations]
        return Floor(
            sum(o.flops for o in operations),
            sum(o.bytes for o in operations),
            sum(arithmetic),
            sum(movement),
            sum(max(pair) for pair in zip(arithmetic, movement, strict=True)),
        )

    def _best(self, run: Callable[[], object]) -> float:
        times = []
        for _ in range(self._options.tries + 1):
            self._wait()
            start = time.perf_counter()
            run()
            self._wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


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
    machine = Machine(options)
    for name in options.networks:
        network = NETWORKS[name]
        floors = {method: machine.floor(count(options, network, method)) for method in options.methods}
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
