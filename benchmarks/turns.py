"""Methods side by side on one network: a process each, steps in turns, and the memory of a step in that process."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles

import torch
from arms import Network, Training, batches
from environment import add_record
from step_memory import StepMemory, step_memory

from tuckprop.memory import keep_freed_memory


@dataclass(frozen=True)
class Settings:
    """How a comparison is run."""

    data: str = "cifar10"
    """Data set."""
    data_path: Path | None = None
    """Where it is."""
    weights: Path | None = None
    """Weights for MCUNet (safetensors)."""
    repeats: int = 11
    """Turns a method that are timed, of two steps each; at least 2."""
    warmup: int = 4
    """Turns a method before."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 2
    """CPU threads."""
    cycle: int = 0
    """Serve so many batches over and over, which every process keeps where it trains; 0 sends new ones each turn."""
    tf32: bool = False
    """Let a GPU multiply float32 matrices in TF32."""
    bfloat16: bool = False
    """Run every method's forward under bfloat16 autocast."""
    keep_freed: bool = False
    """Let every method keep freed memory for its next tensors (tuckprop.memory.keep_freed_memory)."""
    out: Path | None = None
    """Add records to this JSONL file."""

    def __post_init__(self) -> None:
        # Before anything is timed: MCUNet may be the last network of an hour.
        if self.weights is not None and not self.weights.is_file():
            raise SystemExit(f"--weights: expected a file of weights for MCUNet, there is none at {self.weights}")


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third quartile."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Result:
    """One method on one network.

    Attributes:
        seconds: Of each timed step.
        ratios: Of each to the first method's step of the same turn.
        memory: Of a step.
        reserved: Bytes that the process had taken from the GPU at most, in all steps; 0 on a CPU.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    memory: StepMemory
    reserved: int = 0

    def record(self) -> dict[str, object]:
        """Return it for a JSONL file, with quartiles."""
        return {
            "seconds": self.seconds,
            "seconds_quartiles": asdict(quartiles(self.seconds)),
            "ratios": self.ratios,
            "ratio_quartiles": asdict(quartiles(self.ratios)),
            "reserved": self.reserved,
            **asdict(self.memory),
        }


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least two values."""
    return Quartiles(*quantiles(values, n=4, method="inclusive"))


def compare(settings: Settings, network: Network, methods: Sequence[str]) -> dict[str, Result]:
    """Train under every method in turns, on the same real images.

    Args:
        settings: How.
        network: What to train.
        methods: Keys of `arms.METHODS`; ratios are to the first.

    Returns:
        Results by method.

    Raises:
        RuntimeError: A method's process died; its own error is on stderr.
    """
    count = settings.warmup + settings.repeats
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    memory: dict[str, StepMemory] = {}
    with _workers(settings, network, methods) as workers:
        needed = settings.cycle or 2 * count
        served = batches(network, settings.data, settings.data_path, needed + 1, torch.device("cpu"))
        # As NumPy arrays they are copied to the worker; a tensor would be memory that all workers share.
        pairs = ((images.numpy(), labels.numpy()) for images, labels in served)
        first = next(pairs)
        for method in methods:
            memory[method] = _ask(workers, method, first)
        if settings.cycle:
            kept = list(pairs)
            for method in methods:
                _ask(workers, method, kept)
            pairs = (number % settings.cycle for number in range(2 * count))
        for turn in zip(pairs, pairs, strict=True):
            for method in methods:
                seconds[method].append(_ask(workers, method, turn))
        reserved = {method: _ask(workers, method, "reserved") for method in methods}
    timed = {method: tuple(taken[settings.warmup :]) for method, taken in seconds.items()}
    base = timed[methods[0]]
    return {
        method: Result(taken, tuple(a / b for a, b in zip(taken, base, strict=True)), memory[method], reserved[method])
        for method, taken in timed.items()
    }


def write_record(settings: Settings, record: dict[str, object]) -> None:
    """Add a record to the file that the settings name, if any, with where it comes from."""
    add_record(settings.out, record | {"keep_freed": settings.keep_freed}, settings.device, settings.threads)


def _work(connection: Connection, settings: Settings, network: Network, method: str) -> None:
    """Train in this process. The first message is a batch, to measure memory with; then come turns, and a question.

    A turn is two steps, of which the second one's seconds go back: the first brings this process's memory back into the
    caches, as it is in a training run. Its batches come with it, or are numbers of those that came before in a list.
    """
    torch.set_num_threads(settings.threads)
    if settings.keep_freed and not keep_freed_memory():
        raise RuntimeError("--keep-freed: this C library is not glibc")
    if settings.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    training = Training(network, method, torch.device(settings.device), settings.weights, bfloat16=settings.bfloat16)
    if (first := connection.recv()) is None:
        return
    connection.send(step_memory(training, *training.take(*(torch.from_numpy(part) for part in first))))
    del first
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    while (turn := connection.recv()) is not None:
        if turn == "reserved":
            connection.send(torch.cuda.max_memory_reserved(training.device) if training.device.type == "cuda" else 0)
            continue
        if isinstance(turn, list):
            kept = [training.take(*(torch.from_numpy(part) for part in pair)) for pair in turn]
            connection.send(None)
            continue
        for pair in turn:
            batch = kept[pair] if isinstance(pair, int) else training.take(*(torch.from_numpy(part) for part in pair))
            _wait_for(training.device)
            start = time.perf_counter()
            training.step(*batch)
            _wait_for(training.device)
            taken = time.perf_counter() - start
        connection.send(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ask(workers: dict[str, Connection], method: str, message: object) -> object:
    try:
        workers[method].send(message)
        return workers[method].recv()
    except (EOFError, OSError) as error:
        raise RuntimeError(f"{method}: its process died; the reason is on stderr") from error


@contextmanager
def _workers(settings: Settings, network: Network, methods: Sequence[str]) -> Iterator[dict[str, Connection]]:
    """Start a process a method: the memory that one method leaves behind must not serve another.

    Yields:
        The way to each, by method.
    """
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for method in methods:
        connections[method], far = context.Pipe()
        processes.append(context.Process(target=_work, args=(far, settings, network, method), daemon=True))
        processes[-1].start()
        far.close()  # So that a dead worker ends the connection.
    try:
        yield connections
    finally:
        for connection in connections.values():
            with suppress(OSError):
                connection.send(None)
        for process in processes:
            process.join()
