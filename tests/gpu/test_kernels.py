"""Kernels in Triton against PyTorch's operations: on a GPU, or on a CPU by Triton's interpreter.

The interpreter serves where Triton is installed and TRITON_INTERPRET=1 is set before Python starts.
"""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

INTERPRETED = find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device, or Triton and TRITON_INTERPRET=1", allow_module_level=True)

from tuckprop.gpu import batch_norm, depthwise, flags, layer_norm, levels, max_pool, mode_product  # noqa: E402
from tuckprop.layers.smooth import Smooth, level_code  # noqa: E402
from tuckprop.linalg.bits import unpack_codes  # noqa: E402
from tuckprop.linalg.levelcode import MIDDLE  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _in_full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def equal(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [1, 7, 64, 4097, 9000])
@pytest.mark.parametrize("bounds", [(0.0, None), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_clamp_and_gate(count: int, bounds: tuple[float, float | None], dtype: torch.dtype) -> None:
    low, high = bounds
    x, grad = 3 * random(count, dtype=dtype), random(count, dtype=dtype)
    grad[::3] = torch.inf
    x[1::7] = low
    if high is None:
        x[::5] = torch.nan  # PyTorch's own kernels on a CPU disagree about NaN in a clamp of two bounds.
    else:
        x[2::7] = high
    given = x.clone().requires_grad_()
    expected = F.relu(given) if high is None else F.hardtanh(given, low, high)
    expected.backward(grad)
    y, out = torch.empty_like(x), torch.empty_like(x)
    flags.gate(grad, flags.clamp(x, y, low, high), out)
    equal(y, expected.detach())
    equal(out, given.grad)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 5003])
def test_level_codes(bits: int, count: int) -> None:
    code = level_code(Smooth(F.gelu, (("approximate", "none"),)), bits, torch.device("cpu"))
    x, grad = 3 * torch.randn(count), torch.randn(count)
    expected = code.encode(x)
    packed, out = torch.empty_like(expected, device=DEVICE), torch.empty(count, device=DEVICE)
    levels.encode(x.to(DEVICE), packed, code.codes.to(DEVICE), bits, code.reach, MIDDLE)
    # At the edge of a cell rounding decides.
    differ = unpack_codes(packed.cpu(), bits, count) != unpack_codes(expected, bits, count)
    assert float(differ.float().mean()) < 5e-3
    levels.scale(grad.to(DEVICE), expected.to(DEVICE), code.rounded.to(DEVICE), bits, out)
    code.multiply(grad, expected, grad)
    assert_close(out.cpu(), grad)


@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (4, 40, 9, 12), (2, 64, 1, 3), (5, 3, 20, 20)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 17])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batch_norm(shape: tuple[int, ...], rank: int, layout: torch.memory_format) -> None:
    samples, channels, *sizes = shape
    if rank > channels:
        pytest.skip("more ranks than channels")
    x, grad = random(*shape), random(*shape).contiguous(memory_format=layout)
    scale = torch.rand(channels, device=DEVICE) + 0.5
    if rank:
        factor, core = random(channels, rank), random(samples, rank, *sizes)
        normal = torch.einsum("ck,bkhw->bchw", factor, core)
        source = batch_norm.Normalised(core.contiguous(memory_format=layout), factor, scale, scale)
    else:
        mean, invstd = x.mean((0, 2, 3)), (x.var((0, 2, 3), unbiased=False) + 1e-5).rsqrt()
        normal = (x - mean.view(-1, 1, 1)) * invstd.view(-1, 1, 1)
        source = batch_norm.Normalised(x.contiguous(memory_format=layout), None, mean, invstd)
    products, sums = (grad * normal).sum((0, 2, 3)), grad.sum((0, 2, 3))
    count = samples * sizes[0] * sizes[1]
    means, shares = (part.view(-1, 1, 1) / count for part in (sums, products))
    out = torch.empty_like(grad)
    found = batch_norm.backward(grad, source, scale, out)
    assert_close(found[0], products, **CLOSE)
    assert_close(found[1], sums, **CLOSE)
    assert_close(out, scale.view(-1, 1, 1) * (grad - means - normal * shares), **CLOSE)


@pytest.mark.parametrize("shape", [(5, 7), (300, 96), (33, 130)], ids=str)
def test_layer_norm(shape: tuple[int, int]) -> None:
    x, weight, bias = (random(*size).requires_grad_() for size in (shape, shape[1:], shape[1:]))
    grad = random(*shape)
    F.layer_norm(x, shape[1:], weight, bias).backward(grad)
    mean, invstd = x.detach().mean(1), (x.detach().var(1, unbiased=False) + 1e-5).rsqrt()
    out = torch.empty_like(grad)
    products, sums = layer_norm.backward(grad, x.detach(), mean, invstd, invstd, weight.detach(), out)
    assert_close(out, x.grad, **CLOSE)
    assert_close(products, weight.grad, **CLOSE)
    assert_close(sums, bias.grad, **CLOSE)


@pytest.mark.parametrize(
    "window",
    [((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 2), (1, 2), (1, 0), (2, 1))],
    ids=str,
)
def test_max_pool(window: Any) -> None:
    x = random(2, 3, 11, 13).round(decimals=1)
    x[0, 0, 2:6, 2:6] = -torch.inf
    x[1, 1, 3, 3] = torch.nan
    given = x.clone().requires_grad_()
    expected = F.max_pool2d(given, *window)
    y, taps = torch.empty_like(expected), torch.empty(expected.numel(), dtype=torch.uint8, device=DEVICE)
    max_pool.max_pool(x, y, taps, window)
    equal(y, expected.detach())
    grad, out = torch.randn_like(y), torch.full_like(x, torch.nan)
    expected.backward(grad)
    max_pool.max_unpool(grad, taps, out, window)
    assert_close(out, given.grad)


@pytest.mark.parametrize(
    "window",
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((5, 5), (1, 1), (2, 2), (1, 1)),
        ((7, 7), (2, 2), (3, 3), (1, 1)), ((3, 3), (1, 1), (2, 2), (2, 2)), ((3, 1), (1, 2), (0, 0), (1, 1)),
        ((3, 3), (3, 2), (1, 0), (2, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_depthwise(window: Any) -> None:
    kernel, stride, padding, dilation = window
    x, weight = random(2, 4, 11, 13).requires_grad_(), random(4, 1, *kernel).requires_grad_()
    y = F.conv2d(x, weight, None, stride, padding, dilation, 4)
    grad = torch.randn_like(y)
    y.backward(grad)
    out = torch.full_like(x.detach(), torch.nan)
    depthwise.input_gradient(grad, weight.detach(), out, window)
    assert_close(out, x.grad, **CLOSE)
    assert_close(depthwise.weight_gradient(x.detach(), grad, window), weight.grad, **CLOSE)


@pytest.mark.parametrize(
    ("before", "size", "after", "rank"),
    [
        (300, 7, 1, 3), (513, 100, 1, 20), (70, 20, 1, 100), (50, 14, 7, 5), (60, 30, 3, 2),
        (5, 8, 530, 70), (2, 100, 600, 17), (1, 3, 2000, 9),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_mode_product(before: int, size: int, after: int, rank: int, turned: bool) -> None:
    x = random(before, size, after)
    matrix = random(rank, size).T if turned else random(size, rank)
    y = torch.full((before, rank, after), torch.nan, device=DEVICE)
    mode_product.product(x, matrix, y)
    assert_close(y, torch.einsum("bna,nr->bra", x, matrix), **CLOSE)
