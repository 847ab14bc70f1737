"""Speed of packing and unpacking, in source bytes a second, against a plain copy of the same bytes.

    OMP_NUM_THREADS=2 python benchmarks/bits.py [--elements 12582912] [--repeats 15] [--device cuda]

"source" is what is packed from, or what is unpacked to: bools, bytes, or float32. All memory is there beforehand except
what a function makes by itself; the copy goes to memory that is there. The best of the repeats counts. With
TUCKPROP_NATIVE=0 in the environment, PyTorch's operations do what native kernels do otherwise.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from arms import SEED
from environment import environment, in_words
from torch import Tensor

from tuckprop import native
from tuckprop.layers.smooth import Smooth, level_code
from tuckprop.linalg.bits import collect_flags, gates, pack_codes, pack_flags, unpack_codes, unpack_flags


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the time of the fastest of some runs."""
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[2:])


class Operation(NamedTuple):
    """One function of ours, or a plain copy.

    Attributes:
        name: Of the line; a copy is what the lines after it are compared with.
        size: Bytes of a source element.
        run: Does it once.
    """

    name: str
    size: int
    run: Callable[[], object]


def packing(flags: Tensor, bytes_: Tensor) -> Iterator[Operation]:
    """Yield the packing and unpacking of bools and of few-bit codes."""
    n, copied, packed_flags = len(flags), torch.empty_like(flags), pack_flags(flags)
    yield Operation("copy of bools", 1, lambda: copied.copy_(flags))
    yield Operation("flags, from bools", 1, lambda: pack_flags(flags))
    yield Operation("flags, to bools", 1, lambda: unpack_flags(packed_flags, n))
    for bits in (1, 2, 4):
        codes = bytes_ % (1 << bits)
        packed = pack_codes(codes, bits)
        yield Operation(f"{bits}-bit codes, from bytes", 1, partial(pack_codes, codes, bits))
        yield Operation(f"{bits}-bit codes, to bytes", 1, partial(unpack_codes, packed, bits, n))


def rectifying(x: Tensor, grad: Tensor, out: Tensor) -> Iterator[Operation]:
    """Yield ReLU and its gradient, PyTorch's and those that go by flags; `out` is written to."""
    compiled, packed_flags = native.serves(x), pack_flags(x > 0)

    def rectify() -> object:
        if compiled:
            return native.clamp(x, out, 0.0, None)
        return collect_flags(lambda p, f: f.copy_(torch.clamp_min(x[p], 0, out=out[p])), len(x), torch.bool, x.device)

    clamped = rectify()

    def pass_on() -> None:
        if compiled:
            native.gate(grad, clamped, out)  # type: ignore[arg-type]
            return
        for part, gate in gates(packed_flags, len(x), torch.float32):
            torch.ops.aten.threshold_backward.grad_input(grad[part], gate, 0, grad_input=out[part])

    def pytorchs() -> None:
        torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)

    yield Operation("copy of float32", 4, lambda: out.copy_(x))
    yield Operation("ReLU alone, float32", 4, lambda: torch.clamp_min(x, 0, out=out))
    yield Operation("ReLU and its flags, float32", 4, rectify)
    yield Operation("PyTorch's gradient of ReLU, float32", 4, pytorchs)
    yield Operation("gradient through flags, float32", 4, pass_on)


def levelling(x: Tensor, grad: Tensor, out: Tensor) -> Iterator[Operation]:
    """Yield the few-bit derivative of GELU, made and multiplied with; `out` is written to."""
    for bits in (1, 2, 4, 8):
        code = level_code(Smooth(F.gelu), bits, x.device)
        packed = code.encode(x)
        yield Operation(f"{bits}-bit slope of GELU, from float32", 4, partial(code.encode, x))
        multiply = partial(code.multiply, grad, packed, out)
        yield Operation(f"gradient through {bits}-bit slope, float32", 4, multiply)


def main() -> None:
    """Print one line an operation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--elements", type=int, default=32 * 96 * 64 * 64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, n = torch.device(arguments.device), arguments.elements
    torch.manual_seed(SEED)
    x = torch.randn(n, device=device)
    grad, out = torch.randn_like(x), torch.empty_like(x)
    bytes_ = (torch.rand(n, device=device) * 255).to(torch.uint8)
    compiled = "yes" if native.serves(x) else "no"
    print(f"{n} elements; native kernels: {compiled}; {in_words(environment(device))}")
    reference = 0.0
    for name, size, run in chain(packing(x > 0, bytes_), rectifying(x, grad, out), levelling(x, grad, out)):
        speed = n * size / seconds(run, arguments.repeats, device) / 1e9
        reference = speed if name.startswith("copy") else reference
        print(f"{name:42s} {speed:7.2f} GB/s   {speed / reference:5.2f} of a copy", flush=True)


if __name__ == "__main__":
    main()
