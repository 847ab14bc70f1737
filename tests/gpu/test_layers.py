"""What holds on a CPU holds on a GPU, and a settled step neither waits for the device nor leaves its memory full."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import CODECS, LAYERS, LayerCase, pair_id, pairs
from tests.codecs.test_lagging import batches, network
from tests.layers.contract import check_contract
from tests.layers.pointwise import FLOATS, Step, assert_same_step, layouts, twin
from tests.layers.test_rectifier import IN_PLACE, OUT_OF_PLACE
from tuckprop import ASI, HOSVD, Dense, GradientFilter, Subspace
from tuckprop.codecs import Codec
from tuckprop.linalg.modes import mode_product
from tuckprop.memory import census

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SETTLING = 30
LAYOUTS = ("contiguous", "permuted", "channels last", "strided", "expanded")
SMOOTH: list[nn.Module] = [nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.Mish()]
POOLS: list[nn.Module] = [
    nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_full_precision() -> Iterator[None]:
    """Multiply float32 in float32, so that the two devices differ by rounding alone."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


EXACT_INPUT = [codec for codec in CODECS if not isinstance(codec, GradientFilter)]


@pytest.mark.parametrize(("case", "codec"), pairs(EXACT_INPUT), ids=pair_id)
def test_every_layer_keeps_its_contract(case: LayerCase, codec: Codec, forced: None) -> None:
    check_contract(replace(case, device="cuda"), codec)


@pytest.mark.parametrize("case", [case for case in LAYERS if case.plain is not nn.Linear], ids=str)
@pytest.mark.parametrize("codec", [HOSVD(0.5), GradientFilter(2)], ids=repr)
def test_a_layer_computes_what_it_does_on_a_cpu(case: LayerCase, codec: Codec, forced: None) -> None:
    if codec.refusal(case.module()) is not None:
        pytest.skip("the codec does not serve this layer")
    found = []
    for device in ("cpu", "cuda"):
        there = replace(case, device=device)
        module, x = tuckprop.convert(there.module(), codec), there.input().requires_grad_()
        module(x).square().sum().backward()
        found.append([x.grad.cpu(), *(p.grad.cpu() for p in module.parameters())])
    for here, there in zip(*found, strict=True):
        assert_close(there, here, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("module", OUT_OF_PLACE + IN_PLACE, ids=repr)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rectifiers_are_exact(module: nn.Module, dtype: torch.dtype, layout: str) -> None:
    x = layouts((3, 5, 7, 2), dtype)[layout].to(CUDA)
    assert_same_step(module, x, leaf=not getattr(module, "inplace", False))


@pytest.mark.parametrize("module", OUT_OF_PLACE + IN_PLACE, ids=repr)
@pytest.mark.parametrize("count", [1, 7, 4097, (1 << 22) + 13])
def test_rectifiers_are_exact_at_any_size(module: nn.Module, count: int) -> None:
    x = torch.randn(count, device=CUDA)
    x[:: max(1, count // 5)] = float("nan")
    assert_same_step(module, x, leaf=not getattr(module, "inplace", False))


@pytest.mark.parametrize("module", SMOOTH, ids=repr)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 5003, (1 << 22) + 13])
def test_smooth_activations_use_the_levels_that_a_cpu_uses(
    module: nn.Module, dtype: torch.dtype, bits: int, count: int
) -> None:
    x = (2 * torch.randn(count)).to(dtype)
    module.derivative_bits = bits  # type: ignore[assignment]
    here, there, plain = Step(twin(module), x), Step(twin(module), x.to(CUDA)), Step(module, x.to(CUDA))
    assert torch.equal(there.output, plain.output)
    # At the edge of a cell rounding decides.
    apart = (here.grad - there.grad.cpu()).abs() > 1e-2 * here.grad.abs()
    assert float(apart.float().mean()) < 2e-3


@pytest.mark.parametrize("module", POOLS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_pools_are_plain(module: nn.Module, dtype: torch.dtype, layout: str) -> None:
    x = layouts((3, 5, 14, 12), dtype)[layout].to(CUDA)
    plain, converted = Step(module, x), Step(twin(module), x)
    assert torch.equal(converted.output, plain.output)
    assert_close(converted.grad, plain.grad)


NORMS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.BatchNorm1d(12), (9, 12)),
    (nn.BatchNorm1d(12), (3, 12, 70)),
    (nn.BatchNorm2d(12), (4, 12, 7, 9)),
    (nn.BatchNorm2d(40), (2, 40, 32, 24)),
    (nn.BatchNorm2d(12, affine=False), (4, 12, 7, 9)),
    (nn.BatchNorm3d(6), (2, 6, 5, 4, 7)),
    (nn.LayerNorm(40), (5, 7, 40)),
    (nn.LayerNorm((6, 10), bias=False), (5, 3, 6, 10)),
    (nn.LayerNorm(40, elementwise_affine=False), (5, 7, 40)),
    (nn.GroupNorm(4, 12), (3, 12, 6, 5)),
]


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=str)
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1.0), Subspace(1.0)], ids=repr)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("is_forced", [False, True], ids=["chosen", "forced"])
def test_norms_have_the_plain_gradients(
    norm: nn.Module,
    shape: tuple[int, ...],
    codec: Codec,
    channels_last: bool,
    is_forced: bool,
    request: pytest.FixtureRequest,
) -> None:
    if is_forced:
        request.getfixturevalue("forced")
    x = 1 + 2 * torch.randn(shape, device=CUDA)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for convert in (lambda m: m, lambda m: tuckprop.convert(nn.Sequential(m), codec)):
        torch.manual_seed(0)
        module = copy.deepcopy(norm).to(CUDA)
        for p in module.parameters():
            p.data.uniform_(0.5, 1.5)
        given = x.clone().requires_grad_()
        y = convert(module)(given * 1.0)
        y.backward(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(CUDA))
        found.append([y.detach(), given.grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (7, 2, 3), ((1, 3), 1, (0, 1))]
)
@pytest.mark.parametrize("size", [7, 14, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_depthwise_gradients(kernel: Any, stride: int, padding: Any, size: int, dtype: torch.dtype) -> None:
    plain = nn.Conv2d(20, 20, kernel, stride, padding, groups=20, device=CUDA, dtype=dtype)
    converted = tuckprop.convert(nn.Sequential(copy.deepcopy(plain)), Dense())
    x = torch.randn(5, 20, size, size + 3, device=CUDA, dtype=dtype)
    found = []
    for module in (plain, converted):
        given = x.clone().requires_grad_()
        y = module(given * 1.0)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
        found.append([y.detach(), given.grad, *(p.grad for p in module.parameters())])
    rough = dtype == torch.bfloat16
    for one, other in zip(*found, strict=True):
        assert_close(other, one, rtol=5e-2 if rough else 1e-3, atol=0.3 if rough else 1e-3)


@pytest.mark.parametrize(
    ("shape", "mode", "rank"),
    [((40, 32, 30, 32), 3, 5), ((40, 32, 30, 32), 1, 7), ((4, 32, 3000, 3), 1, 9), ((3, 500, 800), 1, 33)],
)
def test_mode_products_of_large_tensors(shape: tuple[int, ...], mode: int, rank: int) -> None:
    x = torch.randn(shape, device=CUDA)
    matrix = torch.randn(rank, shape[mode], device=CUDA).T
    expected = torch.tensordot(x.double(), matrix.double(), ([mode], [0])).movedim(-1, mode)
    assert_close(mode_product(x, matrix, mode).double(), expected, rtol=1e-3, atol=1e-3)


def test_dropout_draws_what_the_plain_layer_draws() -> None:
    x = torch.randn(64, 100, device=CUDA)
    plain, converted = Step(nn.Dropout(0.3), x), Step(twin(nn.Dropout(0.3)), x)
    assert torch.equal(converted.output, plain.output)
    assert_close(converted.grad, plain.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_lossless_training_is_plain_training(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*[m for m in network() if not isinstance(m, (nn.GELU, nn.Hardswish))])
    converted = tuckprop.convert(copy.deepcopy(plain), HOSVD(1.0))
    x = next(batches()).to(CUDA)
    found = []
    for model in (plain, converted):
        model.to(CUDA, memory_format=layout)
        y = model(x.contiguous(memory_format=layout))
        y.square().mean().backward()
        found.append([y, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert_close(other, one, rtol=1e-3, atol=1e-5)


def settled(codec: Codec, autocast: bool = False) -> tuple[nn.Module, Tensor]:
    """Return a converted network after some steps, and a batch like those before."""
    model = tuckprop.convert(network(), codec).to(CUDA)
    served = batches()
    for _ in range(SETTLING):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = model(next(served).to(CUDA)).square().mean()
        loss.backward()
    return model, next(served).to(CUDA)


@pytest.mark.parametrize("codec", [Subspace(0.8), ASI((4, 4, 4, 4)), Dense()], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_settled_step_waits_for_nothing(codec: Codec, autocast: bool) -> None:
    model, x = settled(codec, autocast)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = model(x).square().mean()
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_first_step_does_wait() -> None:
    """The check above can fail: bases are computed by decompositions that are waited for."""
    model = tuckprop.convert(network(), Subspace(0.8)).to(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            model(next(batches()).to(CUDA)).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("codec", [Subspace(0.8), Dense()], ids=str)
def test_a_step_is_captured_in_a_graph_and_replayed(codec: Codec) -> None:
    model, x = settled(codec)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> Tensor:
        loss = model(x).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    x.mul_(1.01)
    graph.replay()
    replayed = [loss.clone(), *(p.grad.clone() for p in parameters)]
    assert all(bool(t.isfinite().all()) for t in replayed)
    again = step()
    assert_close(replayed[0], again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("codec", [Subspace(0.8), HOSVD(0.8)], ids=str)
def test_the_allocator_holds_less(codec: Codec) -> None:
    held, counts = [], []
    for convert in (lambda m: m, lambda m: tuckprop.convert(m, codec)):
        model = convert(
            nn.Sequential(*[
                nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(6)
            ])
        ).to(CUDA)
        x = F.interpolate(torch.randn(16, 16, 8, 8, device=CUDA), 64, mode="bilinear")
        for _ in range(4):
            model(x).square().mean().backward()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = model(x).square().mean()
        held.append(torch.cuda.memory_allocated() - before)
        with census(model) as counted:
            other = model(x).square().mean()
            counts.append(counted.held_bytes)
        del loss, other
    assert held[1] < 0.3 * held[0]
    assert counts[1] < 0.3 * counts[0]
