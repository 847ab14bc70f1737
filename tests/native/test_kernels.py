"""The compiled kernels compute what PyTorch's operations do, for every size, and are missed by nobody."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tests.layers.pointwise import assert_same_step, twin
from tests.native.compiler import needs_compiler
from tuckprop import HOSVD, Dense, native
from tuckprop.codecs import Codec
from tuckprop.layers.smooth import Smooth, level_code
from tuckprop.native import _build

SIZES = st.one_of(st.integers(1, 1100), st.sampled_from([512 * 32, 512 * 64 + 7, 512 * 32 * 3 + 513, 100_003]))
CPU = torch.device("cpu")


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 3


@needs_compiler
@given(count=SIZES, high=st.sampled_from([None, 0.5, 6.0]), low=st.sampled_from([0.0, -1.0]), in_place=st.booleans())
def test_clamp_and_gate(count: int, high: float | None, low: float, in_place: bool) -> None:
    x, grad = normal(count), normal(count, 1)
    x[:: max(1, count // 3)] = low  # On the edge.
    y, result = (x.clone(), grad.clone()) if in_place else (torch.empty_like(x), torch.empty_like(grad))
    bits = native.clamp(y if in_place else x, y, low, high)
    assert bits.numel() == -(-count // 8)
    native.gate(result if in_place else grad, bits, result)
    assert torch.equal(y, x.clamp(low, high))
    inside = (x > low) & (x < (torch.inf if high is None else high))
    assert torch.equal(result, torch.where(inside, grad, 0.0))


@needs_compiler
@given(count=SIZES, bits=st.sampled_from([1, 2, 4, 8]))
def test_levels(count: int, bits: int) -> None:
    code = level_code(Smooth(nn.functional.gelu), bits, CPU)
    x, grad = normal(count), normal(count, 1)
    # Away from the borders of cells, where rounding decides.
    place = x.clamp(-code.reach, code.reach) * 256 / (2 * code.reach)
    x = torch.where((place - place.round()).abs() < 1e-3, 0.1, x)
    packed = code.encode(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda _: False)
        expected = code.encode(x)
    held = 8 // bits
    whole = count // held
    assert torch.equal(packed[:whole], expected[:whole])
    out = torch.empty_like(grad)
    code.multiply(grad, packed, out)
    levels = torch.cat([part.clone() for _, part in code.decode(expected, count, torch.float32)])
    assert torch.equal(out, grad * levels)


MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.3, 0.7), nn.Hardtanh(-0.3, 0.7, inplace=True),
]  # fmt: skip


@needs_compiler
@given(data=st.data())
def test_pool(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=data.draw(st.booleans()))
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(8, 20), st.integers(9, 40)))
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()  # With many equals.
    if data.draw(st.booleans()):
        x[x == 3] = torch.nan
        x[x == -3] = -torch.inf
    assert_same_step(module, x)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("module", MODULES, ids=repr)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 31, 33), (2, 64, 40, 40)])
def test_layers_with_and_without(
    module: nn.Module, shape: tuple[int, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "serves", lambda _: False)
    elif _build.library() is None:
        pytest.skip("no C compiler here")
    torch.manual_seed(0)
    for x in (torch.randn(shape), torch.randn(shape).transpose(0, -1)):
        assert_same_step(module, x, leaf=not getattr(module, "inplace", False))


@needs_compiler
def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clamp = native.clamp
    monkeypatch.setattr(native, "clamp", lambda x, *rest: (calls.append(x.numel()), clamp(x, *rest))[1])
    twin(nn.ReLU())(torch.randn(40, requires_grad=True))
    assert calls == [40]


class TestBuild:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("TUCKPROP_NATIVE", raising=False)

    def test_it_is_built_once(self, tmp_path: Path) -> None:
        if _build.library() is None:
            pytest.skip("no C compiler here")
        build = _build.library.__wrapped__
        assert build() is not None
        (built,) = (tmp_path / "tuckprop").iterdir()
        time = built.stat().st_mtime_ns
        assert build() is not None
        assert built.stat().st_mtime_ns == time

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUCKPROP_NATIVE", "0")
        assert _build.library.__wrapped__() is None

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "there-is-no-such-compiler")
        assert _build.library.__wrapped__() is None

    def test_a_compiler_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "false")
        assert _build.library.__wrapped__() is None

    def test_a_cache_that_is_no_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        if _build.library() is None:
            pytest.skip("no C compiler here")
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert _build.library.__wrapped__() is not None


# Of kernel, stride, padding and dilation.
WINDOW_RANGES = ((1, 6), (1, 3), (0, 3), (1, 3))
WINDOW = st.tuples(*[st.tuples(st.integers(low, high), st.integers(low, high)) for low, high in WINDOW_RANGES])


@needs_compiler
@given(window=WINDOW, plane=st.tuples(st.integers(1, 40), st.integers(1, 40)), bias=st.booleans())
def test_depthwise(window: tuple[tuple[int, int], ...], plane: tuple[int, int], bias: bool) -> None:
    kernel, stride, padding, dilation = window
    assume(all(plane[a] + 2 * padding[a] > dilation[a] * (kernel[a] - 1) for a in (0, 1)))
    x, weight, shift = (
        normal(6 * plane[0] * plane[1]).view(2, 3, *plane),
        normal(3 * kernel[0] * kernel[1], 1),
        normal(3),
    )
    weight = weight.view(3, 1, *kernel)
    expected = nn.functional.conv2d(x, weight, shift if bias else None, stride, padding, dilation, 3)
    y = torch.full_like(expected, torch.nan)
    native.depthwise(x, weight, shift if bias else None, y, window)
    assert_close(y, expected, rtol=1e-5, atol=1e-4)
    grad = normal(y.numel(), 2).view_as(y)
    expected_x, expected_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 3, [True, True, False]
    )
    grad_x, grad_weight = torch.full_like(x, torch.nan), torch.full_like(weight, torch.nan)
    native.depthwise_input(grad, weight, grad_x, window)
    native.depthwise_weight(x, grad, grad_weight, window)
    assert_close(grad_x, expected_x, rtol=1e-5, atol=1e-4)
    assert_close(grad_weight, expected_weight, rtol=1e-4, atol=1e-3)


@needs_compiler
@given(sizes=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(2, 300)), affine=st.booleans())
def test_batch_norm(sizes: tuple[int, int, int], affine: bool) -> None:
    samples, channels, positions = sizes
    x = normal(samples * channels * positions).view(sizes) + 50
    weight, bias = (normal(channels, 1), normal(channels, 2)) if affine else (None, None)
    y = torch.empty_like(x)
    mean, invstd, var = native.batch_norm(x, y, weight, bias, 1e-5)
    double = x.double()
    assert_close(mean.double(), double.mean((0, 2)), rtol=1e-6, atol=0)
    assert_close(var.double(), double.var((0, 2), correction=0), rtol=1e-5, atol=1e-9)
    assert_close(invstd.double(), (double.var((0, 2), correction=0) + 1e-5).rsqrt(), rtol=1e-5, atol=0)
    leaves = [double.requires_grad_(), *[t.double().requires_grad_() for t in (weight, bias) if t is not None]]
    expected = nn.functional.batch_norm(leaves[0], None, None, *(leaves[1:] or (None, None)), True, 0.0, 1e-5)
    assert_close(y.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    grad = normal(x.numel(), 3).view_as(x)
    gradients = torch.autograd.grad(expected, leaves, grad.double())
    out = torch.empty_like(grad)
    grad_weight, grad_bias = native.batch_norm_backward(grad, x, weight, mean, invstd, out)
    scale = float(gradients[0].abs().max()) + float((invstd * grad.abs().amax()).max())
    assert_close(out.double(), gradients[0], rtol=1e-4, atol=1e-4 * scale)
    if affine:
        assert_close(grad_weight.double(), gradients[1], rtol=1e-4, atol=1e-3)
        assert_close(grad_bias.double(), gradients[2], rtol=1e-4, atol=1e-3)
    again = native.batch_norm_backward(grad, x, weight, mean, invstd, grad)
    assert torch.equal(grad, out)
    assert torch.equal(again[0], grad_weight)


@needs_compiler
@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 30), st.integers(16, 150), st.booleans())
@example(samples=9, channels=7, rank=3, positions=64 * 64 + 5, own=True)
@example(samples=3, channels=50, rank=40, positions=1024, own=True)
def test_batch_norm_of_a_factored_input(samples: int, channels: int, rank: int, positions: int, own: bool) -> None:
    core = normal(samples * rank * positions).view(samples, rank, -1)
    factor = normal(channels * rank, 1).view(channels, rank) / (9 * rank**0.5)  # The input is normalised: near 1.
    normalised = torch.einsum("bkp,ck->bcp", core.double(), factor.double())
    # What lies around the gradient says nothing.
    memory = torch.full((samples * channels * positions + 128,), float("nan"))
    grad = memory[64:-64].view(samples, channels, positions).copy_(normal(normalised.numel(), 2).view_as(normalised))
    scale, exact = normal(channels, 3), grad.double()
    products, sums = (exact * normalised).sum((0, 2)), exact.sum((0, 2))
    expected = exact * scale[:, None]
    if own:
        expected = scale[:, None] * (exact - (normalised * products[:, None] + sums[:, None]) / (samples * positions))
    out = torch.empty_like(grad)
    found = native.batch_norm_factored(grad, core, factor, scale, out, own)
    assert_close(found[0].double(), products, rtol=1e-4, atol=1e-3)
    assert_close(found[1].double(), sums, rtol=1e-4, atol=1e-3)
    assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    again = native.batch_norm_factored(grad, core, factor, scale, None, own)
    assert torch.equal(again[0], found[0])
    native.batch_norm_factored(grad, core, factor, scale, grad, own)
    assert torch.equal(grad, out)
    assert int(memory.isnan().sum()) == 128


@needs_compiler
@given(samples=st.integers(1, 70), size=st.integers(1, 70), blocks=st.sampled_from([0, 1, 2, 5, 64, 70]))
def test_gram(samples: int, size: int, blocks: int) -> None:
    positions = 16 * blocks or 1
    size = 16 * (size % 5 + 1) if positions == 1 else size
    check_gram(normal(samples * size * positions).view(samples, size, positions))


@needs_compiler
@given(samples=st.integers(1, 20), size=st.integers(32, 330), positions=st.integers(1, 40))
@example(samples=3, size=577, positions=130)
@example(samples=300, size=256, positions=1)
def test_gram_of_any_sizes(samples: int, size: int, positions: int) -> None:
    check_gram(normal(samples * size * positions).view(samples, size, positions))


@needs_compiler
@given(samples=st.integers(1, 9), size=st.integers(1, 95), positions=st.integers(16, 60))
@example(samples=1, size=90, positions=257)
@example(samples=2, size=3, positions=1025)
@example(samples=1, size=32, positions=4111)
def test_gram_of_rows_that_end_within_a_vector(samples: int, size: int, positions: int) -> None:
    # What lies around the tensor says nothing.
    memory = torch.full((samples * size * positions + 128,), float("nan"))
    memory[64:-64] = normal(samples * size * positions)
    check_gram(memory[64:-64].view(samples, size, positions))


def check_gram(stack: Tensor) -> None:
    """Compare with the product in double precision."""
    found = native.gram(stack)
    assert found is not None
    double = stack.double()
    expected = (double @ double.transpose(1, 2)).sum(0)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.trace() / stack.shape[1]))
    assert torch.equal(found, found.T)


@needs_compiler
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(16, 150))
def test_cross(samples: int, size: int, columns: int, positions: int) -> None:
    left, right = torch.randn(samples, size, positions), torch.randn(samples, columns, positions)
    exact = torch.einsum("snp,skp->nk", left.double(), right.double())
    assert_close(native.cross(left, right).double(), exact, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_cross_of_more_than_a_cache_holds() -> None:
    left, right = torch.randn(3, 200, 4096), torch.randn(3, 7, 4096)
    exact = torch.einsum("snp,skp->nk", left.double(), right.double())
    assert_close(native.cross(left, right).double(), exact, rtol=1e-3, atol=1e-3)


@needs_compiler
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(2, 250), *[st.booleans()] * 3)
def test_product_of_a_stack(
    samples: int, size: int, rows: int, positions: int, added: bool, transposed: bool, biased: bool
) -> None:
    stack = torch.randn(samples, size, positions)
    matrix = torch.randn(rows, size).T if transposed else torch.randn(size, rows)
    before, scale = torch.randn(samples, rows, positions), torch.randn(rows) if added else None
    # What lies behind the result is not written to.
    memory = torch.full((before.numel() + 64,), float("nan"))
    out = memory[:-64].view_as(before)
    if added:
        out.copy_(before)
    bias = torch.randn(rows) if biased else None
    native.product(stack, (samples, size, positions), matrix, out, scale, bias)
    assert bool(memory[-64:].isnan().all())
    exact = torch.einsum("snp,nk->skp", stack.double(), matrix.double())
    if scale is not None:
        exact += scale.double()[:, None] * before.double()
    if bias is not None:
        exact += bias.double()[:, None]
    assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


@needs_compiler
@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 150), st.booleans())
def test_product_of_rows(count: int, size: int, columns: int, transposed: bool) -> None:
    rows = torch.randn(count, size, 1)
    matrix = torch.randn(columns, size).T if transposed else torch.randn(size, columns)
    # What lies behind the result is not written to.
    memory = torch.full((count * columns + 64,), 7.0)
    native.product(rows, (count, size, 1), matrix, memory[: count * columns])
    exact = rows[..., 0].double() @ matrix.double()
    assert_close(memory[: count * columns].view(count, columns).double(), exact, rtol=1e-4, atol=1e-4)
    assert bool((memory[count * columns :] == 7.0).all())


@needs_compiler
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.integers(1, 250))
def test_a_measured_product_has_the_energy_of_the_stack(samples: int, size: int, rows: int, positions: int) -> None:
    stack, matrix = torch.randn(samples, size, positions), torch.randn(size, rows)
    out, expected = torch.empty(samples, rows, positions), torch.empty(samples, rows, positions)
    energy = native.measured_product(stack, (samples, size, positions), matrix, out)
    native.product(stack, (samples, size, positions), matrix, expected)
    assert torch.equal(out, expected)
    assert energy == pytest.approx(float(stack.double().square().sum()), rel=1e-6)


@needs_compiler
def test_a_measured_product_is_the_same_for_any_number_of_threads() -> None:
    stack, matrix, before = torch.randn(7, 40, 300), torch.randn(40, 9), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(native.measured_product(stack, (7, 40, 300), matrix, torch.empty(7, 9, 300)))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


@needs_compiler
def test_gram_leaves_small_sizes() -> None:
    assert native.gram(torch.ones(3, 5, 7)) is None
    assert native.gram(torch.ones(3, 5, 1)) is None


@needs_compiler
@pytest.mark.parametrize("codec", [Dense(), HOSVD(0.9)], ids=repr)
@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 5, "stride": 2}])
def test_a_depthwise_layer_and_its_norm_compute_the_same(
    codec: Codec, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a bias, whose gradient a batch norm makes zero.
    model = nn.Sequential(
        nn.Conv2d(6, 6, groups=6, bias=False, **options), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6)
    )
    steps = []
    for kernels in (True, False):
        twin = tuckprop.convert(copy.deepcopy(model), codec)
        x = decaying((4, 6, 40, 40), seed=1, dtype=torch.float32).requires_grad_()
        with monkeypatch.context() as patch:
            if not kernels:
                patch.setattr(native, "serves", lambda _: False)
            y = twin(x)
            y.backward(normal(y.numel()).view_as(y))
        steps.append([y.detach(), x.grad, *[p.grad for p in twin.parameters()], *twin.buffers()])
    for one, other in zip(*steps, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max() + 1))


def test_a_channels_last_weight_keeps_the_output_channels_last() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 32, 32)
    assert tuckprop.convert(copy.deepcopy(layer), Dense())(x).stride() == layer(x).stride()
