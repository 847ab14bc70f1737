"""Speed of packing and unpacking, in source bytes a second, against a plain copy of the same bytes.

    OMP_NUM_THREADS=2 python benchmarks/bits.py [--elements 12582912] [--repeats 15] [--device cuda]

"source" is what is packed from, or what is unpacked to: bools, bytes, or float32. All memory is there beforehand except
what a function makes by itself; the copy goes to memory that is there. The best of the repeats counts. With
TUCKPROP_NATIVE=0 in the environment, PyTorch's operations do what native kernels do otherwise.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from arms import SEED
from environment import environment, in_words

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
    flags = x > 0
    bytes_ = (torch.rand(n, device=device) * 255).to(torch.uint8)
    copied = torch.empty_like(flags)
    packed_flags = pack_flags(flags)

    compiled = native.serves(x)

    def rectify() -> object:
        if compiled:
            return native.clamp(x, out, 0.0, None)
        return collect_flags(lambda p, f: f.copy_(torch.clamp_min(x[p], 0, out=out[p])), n, torch.bool, device)

    clamped = rectify()

    def pass_on() -> None:
        if compiled:
            native.gate(grad, clamped, out)  # type: ignore[arg-type]
            return
        for part, gate in gates(packed_flags, n, torch.float32):
            torch.ops.aten.threshold_backward.grad_input(grad[part], gate, 0, grad_input=out[part])

    runs: list[tuple[str, int, Callable[[], object]]] = [
        ("copy of bools", 1, lambda: copied.copy_(flags)),
        ("flags, from bools", 1, lambda: pack_flags(flags)),
        ("flags, to bools", 1, lambda: unpack_flags(packed_flags, n)),
    ]
    for bits in (1, 2, 4):
        codes = bytes_ % (1 << bits)
        packed = pack_codes(codes, bits)
        runs.append((f"{bits}-bit codes, from bytes", 1, lambda c=codes, b=bits: pack_codes(c, b)))
        runs.append((f"{bits}-bit codes, to bytes", 1, lambda p=packed, b=bits: unpack_codes(p, b, n)))
    runs += [
        ("copy of float32", 4, lambda: out.copy_(x)),
        ("ReLU alone, float32", 4, lambda: torch.clamp_min(x, 0, out=out)),
        ("ReLU and its flags, float32", 4, rectify),
        (
            "PyTorch's gradient of ReLU, float32",
            4,
            lambda: torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=out),
        ),
        ("gradient through flags, float32", 4, pass_on),
    ]
    for bits in (1, 2, 4, 8):
        code = level_code(Smooth(F.gelu), bits, device)
        packed = code.encode(x)

        runs.append((f"{bits}-bit slope of GELU, from float32", 4, lambda c=code: c.encode(x)))
        multiply = partial(code.multiply, grad, packed, out)
        runs.append((f"gradient through {bits}-bit slope, float32", 4, multiply))
    print(f"{n} elements; native kernels: {'yes' if compiled else 'no'}; {in_words(environment(device))}")
    reference = 0.0
    for name, size, run in runs:
        speed = n * size / seconds(run, arguments.repeats, device) / 1e9
        reference = speed if name.startswith("copy") else reference
        print(f"{name:42s} {speed:7.2f} GB/s   {speed / reference:5.2f} of a copy", flush=True)


if __name__ == "__main__":
    main()
