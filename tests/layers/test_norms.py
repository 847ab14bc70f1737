"""Norms: exact where they promise it, within their stated bounds elsewhere, and bit-identical forward."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.cases import RandomTucker, decaying
from tests.forcing import forced_packing
from tuckprop import HOSVD, Dense, Subspace
from tuckprop.codecs import Codec
from tuckprop.layers import Site, find_twin, observe
from tuckprop.layers._twin import become_plain, become_twin

SHAPE = (4, 6, 5, 3)


def _trained(module: nn.Module) -> nn.Module:
    """Give weights and statistics other values than a fresh module's."""
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return module


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d on rows": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), SHAPE),
    "BatchNorm2d, cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), SHAPE),
    "BatchNorm2d, not affine": (lambda: nn.BatchNorm2d(6, affine=False), SHAPE),
    "BatchNorm2d, no statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), SHAPE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), (2, 6, 3, 2, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(3), SHAPE),
    "LayerNorm over two": (lambda: nn.LayerNorm((5, 3)), SHAPE),
    "LayerNorm, not affine": (lambda: nn.LayerNorm(3, elementwise_affine=False), SHAPE),
    "LayerNorm, no bias": (lambda: nn.LayerNorm(3, bias=False), SHAPE),
    "LayerNorm on one row": (lambda: nn.LayerNorm(7), (7,)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), SHAPE),
    "GroupNorm, not affine": (lambda: nn.GroupNorm(2, 6, affine=False), SHAPE),
    "GroupNorm, one position": (lambda: nn.GroupNorm(2, 6), (4, 6)),
}
each_norm = pytest.mark.parametrize("name", NORMS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def make(name: str, training: bool) -> tuple[nn.Module, Tensor]:
    build, shape = NORMS[name]
    return _trained(build().double()).train(training), decaying(shape, seed=4) * 2 + 1


def twin_of(module: nn.Module, codec: Codec) -> nn.Module:
    twin = copy.deepcopy(module)
    kind = find_twin(twin, codec)
    assert kind is not None
    become_twin(twin, kind, Site("norm", codec))
    return twin


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.detach().clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(5)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype))
    assert x.grad is not None
    found = {"input": x.grad} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return y.detach(), found


@each_norm
@each_mode
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1.0)], ids=repr)
def test_a_lossless_codec_gives_pytorchs_gradients(name: str, training: bool, codec: Codec) -> None:
    module, x = make(name, training)
    twin = twin_of(module, codec)
    expected, exact = gradients(module, x)
    actual, found = gradients(twin, x)
    assert torch.equal(actual, expected)
    for (key, buffer), (_, other) in zip(module.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(buffer, other), key
    assert exact.keys() == found.keys()
    for key, gradient in exact.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-12, msg=key)


@each_norm
@each_mode
def test_a_lossless_packed_form_gives_pytorchs_gradients(name: str, training: bool) -> None:
    module, x = make(name, training)
    _, exact = gradients(module, x)
    with forced_packing():
        _, found = gradients(twin_of(module, RandomTucker(1.0)), x)
    for key, gradient in exact.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-10, msg=key)


@each_norm
@each_mode
def test_gradcheck_with_a_lossless_packed_form(name: str, training: bool) -> None:
    module, x = make(name, training)
    twin = twin_of(module, RandomTucker(1.0))
    # Running statistics must not move between the evaluations.
    for part in twin.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 0.0
    with forced_packing():
        assert torch.autograd.gradcheck(twin, (x.requires_grad_(),))


@each_norm
@each_mode
def test_what_the_packed_form_leaves_exact(name: str, training: bool) -> None:
    module, x = make(name, training)
    expected, exact = gradients(module, x)
    with forced_packing():
        actual, found = gradients(twin_of(module, HOSVD(0.5)), x)
    assert torch.equal(actual, expected)
    if "bias" in exact:
        torch.testing.assert_close(found["bias"], exact["bias"], rtol=1e-10, atol=1e-12)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not training and module.track_running_stats:
        torch.testing.assert_close(found["input"], exact["input"], rtol=1e-10, atol=1e-12)


@given(
    st.tuples(st.integers(2, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    st.floats(0.3, 0.99),
    st.integers(0, 1000),
)
def test_batch_norms_error_is_within_the_stated_bound(
    shape: tuple[int, int, int, int], epsilon: float, seed: int
) -> None:
    module = _trained(nn.BatchNorm2d(shape[1]).double())
    x = decaying(shape, seed=seed)
    samples = shape[0] * shape[2] * shape[3]
    _, exact = gradients(module, x)
    kept: list[Tensor] = []
    with forced_packing(), observe(lambda event: kept.append(event.kept.dense())):
        _, found = gradients(twin_of(module, HOSVD(epsilon)), x)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    invstd = (var + module.eps).rsqrt()
    error = (kept[0] - (x - mean) * invstd).transpose(0, 1).flatten(1).norm(dim=1)
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).transpose(0, 1).flatten(1).norm(dim=1)
    assert ((found["weight"] - exact["weight"]).abs() <= grad * error * (1 + 1e-9) + 1e-9).all()
    scale = (module.weight.abs() * invstd.flatten()).detach()
    bound = scale * grad * error / math.sqrt(samples) * (2 + error / math.sqrt(samples))
    off = (found["input"] - exact["input"]).transpose(0, 1).flatten(1).norm(dim=1)
    assert (off <= bound * (1 + 1e-9) + 1e-9).all()


@given(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 8)), st.floats(0.3, 0.99), st.integers(0, 1000))
def test_layer_norms_error_is_within_the_stated_bound(shape: tuple[int, int, int], epsilon: float, seed: int) -> None:
    module = _trained(nn.LayerNorm(shape[2]).double())
    x = decaying(shape, seed=seed)
    _, exact = gradients(module, x)
    kept: list[Tensor] = []
    with forced_packing(), observe(lambda event: kept.append(event.kept.dense())):
        _, found = gradients(twin_of(module, HOSVD(epsilon)), x)
    invstd = (x.var(-1, correction=0, keepdim=True) + module.eps).rsqrt()
    error = (kept[0] - (x - x.mean(-1, keepdim=True)) * invstd).norm(dim=-1)
    generator = torch.Generator().manual_seed(5)
    weighted = (torch.randn(shape, generator=generator, dtype=torch.float64) * module.weight.detach()).norm(dim=-1)
    root = math.sqrt(shape[2])
    bound = invstd[..., 0] * weighted * error * (2 + error / root) / root
    off = (found["input"] - exact["input"]).norm(dim=-1)
    assert (off <= bound * (1 + 1e-9) + 1e-9).all()


def held_bytes(module: nn.Module, x: Tensor) -> int:
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.requires_grad_())
    del y
    return sum(nbytes for pointer, nbytes in held.items() if pointer not in own)


def test_a_frozen_batch_norm_in_eval_mode_keeps_nothing_per_element() -> None:
    module = nn.BatchNorm2d(16).eval().requires_grad_(False)
    x = torch.randn(8, 16, 12, 12)
    assert held_bytes(copy.deepcopy(module), x) >= x.nbytes
    assert held_bytes(twin_of(module, HOSVD(0.8)), x) <= 4 * 16 * 4


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.BatchNorm2d(16), (8, 16, 12, 12)),
        (lambda: nn.LayerNorm(48), (4, 64, 48)),
        (lambda: nn.GroupNorm(4, 16), (8, 16, 12, 12)),
    ],
)
def test_a_smooth_input_is_held_in_a_fraction_of_its_bytes(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    x = decaying(shape, seed=0, dtype=torch.float32)
    assert held_bytes(twin_of(build(), HOSVD(0.8)), x) < 0.5 * x.nbytes


@each_norm
def test_frozen_parameters_get_no_gradient(name: str) -> None:
    module, x = make(name, True)
    module.requires_grad_(False)
    _, exact = gradients(module, x)
    _, found = gradients(twin_of(module, Dense()), x)
    assert exact.keys() == found.keys() == {"input"}
    torch.testing.assert_close(found["input"], exact["input"], rtol=1e-10, atol=1e-12)


@each_norm
@each_mode
def test_without_gradients_the_plain_op_runs(name: str, training: bool) -> None:
    module, x = make(name, training)
    packed: list[object] = []
    with torch.no_grad(), observe(packed.append):
        assert torch.equal(twin_of(module, HOSVD(0.5))(x), module(x))
    assert not packed


def test_bfloat16_inputs_and_channels_last() -> None:
    x = decaying((4, 16, 6, 6), seed=0, dtype=torch.float32)
    for example in (x.bfloat16(), x.contiguous(memory_format=torch.channels_last)):
        module = nn.BatchNorm2d(16)
        expected, exact = gradients(module, example)
        actual, found = gradients(twin_of(module, Dense()), example)
        assert torch.equal(actual, expected)
        torch.testing.assert_close(found["input"], exact["input"])
        _, lossy = gradients(twin_of(nn.BatchNorm2d(16), HOSVD(0.9)), example)
        assert lossy["input"].dtype == example.dtype
        assert F.cosine_similarity(lossy["input"].flatten().float(), exact["input"].flatten().float(), 0) > 0.9


def test_a_non_finite_input_gives_non_finite_gradients() -> None:
    x = decaying((4, 16, 6, 6), seed=0, dtype=torch.float32)
    x[0, 0, 0, 0] = float("nan")
    _, found = gradients(twin_of(nn.BatchNorm2d(16), HOSVD(0.8)), x)
    assert not found["weight"].isfinite().all()


def test_pickle_deepcopy_and_back() -> None:
    twin = twin_of(nn.BatchNorm2d(6), Subspace(0.8))
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert isinstance(other, nn.BatchNorm2d)
        assert other(torch.randn(SHAPE)).shape == SHAPE
    become_plain(twin)  # type: ignore[arg-type]
    assert type(twin) is nn.BatchNorm2d
    assert twin(torch.randn(SHAPE)).shape == SHAPE


def test_one_sample_a_channel_fails_as_in_pytorch() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        twin_of(nn.BatchNorm2d(6), HOSVD(0.8))(torch.randn(1, 6, 1, 1, requires_grad=True))
