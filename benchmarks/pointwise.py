"""Time and saved bytes of every pointwise twin, pool and dropout against the plain layer.

    OMP_NUM_THREADS=2 python benchmarks/pointwise.py [--repeats 15] [--only ReLU]

Plain and converted steps alternate, so that whatever else the machine does falls on both. A step is one forward and one
backward on [32, 96, 64, 64] float32, the input and gradient made beforehand. Bytes are those of unique storages saved
for backward besides the layer's input and output, which the neighbours hold or let go: where PyTorch saves one of those
two, `plain` names it.
"""

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch
from arms import SEED
from environment import environment, in_words
from torch import Tensor, nn

from tuckprop.codecs import Dense
from tuckprop.layers import Site, find_twin
from tuckprop.layers._twin import become_twin

SHAPE = (32, 96, 64, 64)
LAYERS: list[nn.Module] = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(), nn.LeakyReLU(),
    nn.Threshold(0.1, 0.0), nn.Hardsigmoid(), nn.Hardshrink(), nn.Softshrink(),
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True), nn.Mish(), nn.Hardswish(),
    nn.Hardswish(inplace=True), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.LogSigmoid(), nn.ELU(), nn.SELU(),
    nn.CELU(), nn.Softsign(), nn.Tanhshrink(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(7), nn.AdaptiveMaxPool2d(7), nn.Dropout(0.2), nn.AlphaDropout(0.2),
]  # fmt: skip


def twin_of(layer: nn.Module) -> nn.Module:
    """Return a converted copy."""
    converted = copy.deepcopy(layer)
    twin = find_twin(converted, Dense())
    assert twin is not None, type(layer).__name__
    become_twin(converted, twin, Site("benchmark"))
    return converted


def stepper(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], tuple[float, float]]:
    """Return a function that runs one step and returns the seconds of its forward and backward."""
    in_place = getattr(layer, "inplace", False)

    def step() -> tuple[float, float]:
        leaf = x.detach().requires_grad_()
        given = leaf.clone() if in_place else leaf
        start = time.perf_counter()
        y = layer(given)
        middle = time.perf_counter()
        torch.autograd.grad(y, given if not in_place else leaf, grad)
        return middle - start, time.perf_counter() - middle

    return step


def saved(layer: nn.Module, x: Tensor) -> str:
    """Return what a forward saves, in MiB, and whether the input or output is among it."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaf = x.detach().requires_grad_()
    given = leaf.clone() if getattr(layer, "inplace", False) else leaf
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(given)
    parts = []
    for name, tensor in (("input", given), ("output", y)):
        if storages.pop(tensor.untyped_storage().data_ptr(), None) is not None:
            parts.append(name)
    if storages:
        parts.append(f"{sum(storages.values()) / 2**20:.2f}")
    return "+".join(parts) or "0"


def main() -> None:
    """Print one line a layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    x = torch.randn(SHAPE)
    size = f"{list(SHAPE)} float32, {x.nbytes / 2**20:.0f} MiB"
    print(f"{size}; {in_words(environment())}")
    heads = f"{'plain saves':>14s} {'twin saves':>10s} {'plain ms':>9s} {'twin ms':>9s}"
    print(f"{'layer':28s} {heads}   ratio: best, median (fwd, bwd)")
    for layer in LAYERS:
        if arguments.only not in type(layer).__name__:
            continue
        converted = twin_of(layer)
        grad = torch.randn_like(layer(x.clone()))
        steps = stepper(layer, x, grad), stepper(converted, x, grad)
        times: list[list[tuple[float, float]]] = [[], []]
        for turn in range(arguments.repeats + 2):
            for which in (0, 1):
                seconds = steps[which]()
                if turn >= 2:
                    times[which].append(seconds)
        best = [min(sum(t) for t in one) for one in times]
        middle = [median(sum(t) for t in one) for one in times]
        forward, backward = ([min(t[i] for t in one) for one in times] for i in (0, 1))
        name = type(layer).__name__ + (" in place" if getattr(layer, "inplace", False) else "")
        print(
            f"{name:28s} {saved(layer, x):>14s} {saved(converted, x):>10s} {best[0] * 1e3:9.1f} {best[1] * 1e3:9.1f}"
            f"   {best[1] / best[0]:5.2f} {middle[1] / middle[0]:5.2f}"
            f"   ({forward[1] / forward[0]:.2f}, {backward[1] / backward[0]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
