"""Every norm in every memory layout and precision: the plain output and layout, the right gradients, few buffers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import RandomTucker, decaying
from tests.forcing import forced_packing
from tests.layers.norm_contract import Run, check_forward, count_buffers, trained, twin_of
from tuckprop import HOSVD, Dense
from tuckprop.codecs import Codec
from tuckprop.layers import _one_factor

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    ),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "offset": lambda x: torch.cat([x, x])[len(x) :],
}
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d on rows": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (4, 6, 5, 3)),
    "BatchNorm2d, one sample": (lambda: nn.BatchNorm2d(6), (1, 6, 4, 4)),
    "BatchNorm2d, one position": (lambda: nn.BatchNorm2d(6), (4, 6, 1, 1)),
    "BatchNorm2d, not affine": (lambda: nn.BatchNorm2d(6, affine=False), (4, 6, 5, 3)),
    "BatchNorm2d, cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), (4, 6, 5, 3)),
    "BatchNorm2d, no statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), (4, 6, 5, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), (2, 6, 3, 4, 2)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), (4, 6, 5, 3)),
    "GroupNorm, one position": (lambda: nn.GroupNorm(3, 6), (4, 6, 1, 1)),
    "GroupNorm, 3 axes": (lambda: nn.GroupNorm(2, 6), (2, 6, 3, 4, 2)),
    "GroupNorm, none": (lambda: nn.GroupNorm(2, 6), (4, 6)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6, affine=True), (4, 6, 5)),
    "InstanceNorm1d, one sample": (lambda: nn.InstanceNorm1d(6), (6, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6), (4, 6, 5, 3)),
    "InstanceNorm2d, statistics": (lambda: nn.InstanceNorm2d(6, track_running_stats=True), (4, 6, 5, 3)),
    "InstanceNorm2d, all": (lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (4, 6, 5, 3)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(6, affine=True), (2, 6, 3, 4, 2)),
    "LayerNorm": (lambda: nn.LayerNorm(3), (4, 6, 5, 3)),
    "LayerNorm over two": (lambda: nn.LayerNorm((5, 3)), (4, 6, 5, 3)),
    "LayerNorm, no bias": (lambda: nn.LayerNorm(3, bias=False), (4, 5, 3)),
    "RMSNorm": (lambda: nn.RMSNorm(3), (4, 6, 5, 3)),
    "RMSNorm over two": (lambda: nn.RMSNorm((5, 3), eps=1e-3), (4, 6, 5, 3)),
    "RMSNorm, not affine": (lambda: nn.RMSNorm(3, elementwise_affine=False), (4, 5, 3)),
}
each_norm = pytest.mark.parametrize("name", NORMS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def make(name: str, training: bool, layout: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    build, shape = NORMS[name]
    return trained(build().to(dtype), dtype).train(training), LAYOUTS[layout](
        (decaying(shape, seed=4) * 2 + 1).to(dtype)
    )


@each_norm
@each_mode
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("codec", [Dense(), HOSVD(0.8)], ids=repr)
def test_forward_is_the_plain_one(name: str, training: bool, layout: str, dtype: torch.dtype, codec: Codec) -> None:
    module, x = make(name, training, layout, dtype)
    twin = twin_of(module, codec)
    for _ in range(2):
        check_forward(Run(module, x), Run(twin, x))


@each_norm
@each_mode
@each_layout
@pytest.mark.parametrize("forced", [False, True], ids=["input", "packed"])
def test_lossless_gradients_are_the_plain_ones(name: str, training: bool, layout: str, forced: bool) -> None:
    module, x = make(name, training, layout)
    twin = twin_of(module, RandomTucker(1.0) if forced else Dense())
    plain = Run(module, x)
    if forced:
        with forced_packing():
            converted = Run(twin, x)
    else:
        converted = Run(twin, x)
    assert converted.gradients.keys() == plain.gradients.keys()
    for key, gradient in plain.gradients.items():
        assert_close(converted.gradients[key], gradient, rtol=1e-9, atol=1e-10, msg=key)


# Over two elements the normalised input is 1 and -1 whatever they are, and the gradient is what rounding leaves of 0.
@pytest.mark.parametrize("name", [n for n in NORMS if n not in {"GroupNorm, one position", "GroupNorm, none"}])
@each_mode
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_half_precision_gradients_are_near_the_plain_ones(name: str, training: bool, autocast: bool) -> None:
    module, x = make(name, training, "contiguous", torch.float32 if autocast else torch.bfloat16)
    x = x.bfloat16()
    with forced_packing():
        runs = [Run(twin_of(module, codec), x, autocast) for codec in (Dense(), RandomTucker(1.0))]
    plain = Run(module, x, autocast)
    for run in runs:
        check_forward(plain, run)
        for key, gradient in plain.gradients.items():
            found = run.gradients[key]
            assert found.dtype == gradient.dtype
            # Some gradients are sums that all but cancel; their errors are those of the summands.
            size = gradient.float().norm() + 0.1 * plain.grad.float().norm()
            assert (found.float() - gradient.float()).norm() <= 0.03 * size, key


WITH_SHORT_ROUTE = ["BatchNorm2d", "BatchNorm1d", "BatchNorm3d", "GroupNorm", "InstanceNorm2d", "InstanceNorm3d"]


def reference(module: nn.Module, x: Tensor, grad: Tensor, form: Tensor) -> dict[str, Tensor]:
    """Return the gradients by the formulas of the layer files, at a normalised input `form`."""
    one = [1] * (x.dim() - 2)
    weight = getattr(module, "weight", None)
    weight = torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight.detach()
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        samples, channels = x.transpose(0, 1).reshape(1, x.shape[1], -1), x.shape[1]
        rows = [t.transpose(0, 1).reshape(1, channels, -1) for t in (grad * weight.view(1, -1, *one), form)]
    else:
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        samples = x.reshape(len(x), groups, -1)
        rows = [t.reshape(samples.shape) for t in (grad * weight.view(1, -1, *one), form)]
    weighted, normalised = rows
    invstd = (samples.var(2, correction=0, keepdim=True) + module.eps).rsqrt()
    mean, share = weighted.mean(2, keepdim=True), (weighted * normalised).mean(2, keepdim=True)
    result = invstd * (weighted - mean - normalised * share)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        result = result.reshape(x.shape[1], len(x), *x.shape[2:]).transpose(0, 1)
    found = {"input": result.reshape(x.shape)}
    if getattr(module, "weight", None) is not None:
        summed = [axis for axis in range(x.dim()) if axis != 1]
        found |= {"weight": (grad * form).sum(summed), "bias": grad.sum(summed)}
    return found


@pytest.mark.parametrize("name", WITH_SHORT_ROUTE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("short", [True, False], ids=["one factor", "rebuilt"])
@pytest.mark.parametrize("axes", [None, (0,), (-1,), (1,)], ids=str)
def test_both_routes_give_the_gradient_at_what_is_kept(
    name: str, layout: str, short: bool, axes: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_one_factor, "_LARGEST_CORE", 10.0 if short else -1.0)
    module, x = make(name, True, layout)
    with forced_packing():
        run = Run(twin_of(module, RandomTucker(0.4, axes)), x)
    for key, gradient in reference(module, x, run.grad, run.kept[0].dense()).items():
        assert_close(run.gradients[key], gradient, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("form", ["expanded", "transposed", "strided"])
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "RMSNorm"])
@each_mode
def test_output_gradients_of_any_layout(name: str, training: bool, form: str) -> None:
    module, x = make(name, training, "contiguous")
    x = x.requires_grad_()
    with forced_packing():
        y = twin_of(module, RandomTucker(0.4))(x)
    grad = LAYOUTS[form](torch.randn(y.shape, dtype=y.dtype))
    (got,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (expected,) = torch.autograd.grad(y, x, grad.contiguous().clone())
    assert_close(got, expected, rtol=1e-10, atol=1e-10)


BUILDS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(32),
    "GroupNorm": lambda: nn.GroupNorm(8, 32),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(32, affine=True),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "RMSNorm": lambda: nn.RMSNorm(16),
}
SMOOTH = (8, 32, 16, 16)


def backward_buffers(module: nn.Module, layout: str) -> int:
    """Return how many tensors of the input's size backward makes and holds at one time."""
    x = LAYOUTS[layout](decaying(SMOOTH, seed=1, dtype=torch.float32)).requires_grad_()
    y = twin_of(module, HOSVD(0.8))(x)
    assert y.grad_fn is not None
    grad = torch.empty_like(y).normal_()
    with count_buffers(x.nbytes) as counted:
        torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.grad_fn is not None)], grad)
    return counted.most


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_holds_no_work_buffer_where_ranks_are_low(layout: str) -> None:
    """The gradient of the input, and nothing else of its size."""
    for name in ("BatchNorm2d", "GroupNorm", "InstanceNorm2d"):
        assert backward_buffers(BUILDS[name](), layout) == 1, name
    assert backward_buffers(nn.BatchNorm2d(32).eval(), layout) == 1


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_holds_at_most_one_work_buffer(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_one_factor, "_LARGEST_CORE", -1.0)
    assert backward_buffers(BUILDS[name](), layout) <= 2


@pytest.mark.parametrize("name", BUILDS)
def test_forward_holds_the_normalised_input_and_the_output_one_after_the_other(name: str) -> None:
    x = decaying((8, 32, 96, 96), seed=1, dtype=torch.float32)  # Larger than the slabs that the codec copies.
    module = nn.LayerNorm(96) if name == "LayerNorm" else nn.RMSNorm(96) if name == "RMSNorm" else BUILDS[name]()
    twin = twin_of(module, HOSVD(0.8))
    held = []
    for norm in (module, twin):
        with count_buffers(x.nbytes) as counted:
            norm(x.clone().requires_grad_())
        held.append(counted.most)
    assert held[1] <= held[0]


def test_the_gradient_has_the_layout_of_the_output() -> None:
    """Else the next layer's backward would copy it."""
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](decaying(SMOOTH, seed=1, dtype=torch.float32))
        for name in ("BatchNorm2d", "GroupNorm"):
            run = Run(twin_of(BUILDS[name](), HOSVD(0.8)), x)
            leaf = x.detach().requires_grad_()
            found: list[Tensor] = []
            # A leaf's gradient takes the leaf's strides; what arrives at an inner tensor is as it was made.
            inner = leaf * 1
            inner.register_hook(found.append)
            twin_of(BUILDS[name](), HOSVD(0.8))(inner).backward(run.grad)
            assert found[0].stride() == run.grad.stride(), (name, layout)


def test_bfloat16_inputs_with_a_large_mean_keep_their_deviation() -> None:
    """Statistics are not rounded to the input's precision on the way to the normalised input."""
    x = (decaying((8, 16, 12, 12), seed=1, dtype=torch.float32) + 40).bfloat16()
    run = Run(twin_of(nn.BatchNorm2d(16), HOSVD(0.999)), x)
    exact = F.batch_norm(x.float(), None, None, training=True)
    with forced_packing():
        run = Run(twin_of(nn.BatchNorm2d(16), HOSVD(0.999)), x)
    assert (run.kept[0].dense().float() - exact).norm() < 0.05 * exact.norm()
