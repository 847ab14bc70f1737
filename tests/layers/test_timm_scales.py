"""timm's LayerScale, LayerScale2d and GlobalResponseNorm: PyTorch's gradients at the input as it is kept; less held."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import RandomTucker, decaying
from tests.forcing import forced_packing
from tests.layers.contract import TIGHT
from tests.layers.pointwise import held_bytes, twin
from tuckprop import HOSVD, Dense
from tuckprop.layers import PackEvent, Twin, observe
from tuckprop.plan import decide
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()
layers = pytest.importorskip("timm.layers")
grn = pytest.importorskip("timm.layers.grn")

SHAPE = (4, 8, 7, 6)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LayerScale": lambda: layers.LayerScale(6),
    "LayerScale2d": lambda: layers.LayerScale2d(8),
    "GlobalResponseNorm": lambda: grn.GlobalResponseNorm(6),
    "GlobalResponseNorm, channels first": lambda: grn.GlobalResponseNorm(8, channels_last=False),
}
SCALES = [name for name in LAYERS if "Scale" in name]
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    module = LAYERS[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.to(dtype)


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    x = x.detach().clone().requires_grad_()
    events: list[PackEvent] = []
    with observe(events.append):
        y = module(x)
    generator = torch.Generator().manual_seed(5)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype))
    assert x.grad is not None
    gradients = {"input": x.grad} | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return y.detach(), gradients, events[0].kept.dense() if events else None


@each_layer
@pytest.mark.parametrize("codec", [Dense(), RandomTucker(1.0)], ids=repr)
def test_a_lossless_codec_gives_pytorchs_gradients(name: str, codec: Dense | RandomTucker) -> None:
    module, x = make(name), decaying(SHAPE, seed=2)
    with forced_packing():
        actual, found, _ = step(tuckprop.convert(nn.Sequential(copy.deepcopy(module)), codec)[0], x)
    expected, exact, _ = step(module, x)
    assert torch.equal(actual, expected)
    assert found.keys() == exact.keys()
    for key, gradient in exact.items():
        assert_close(found[key], gradient, **TIGHT, msg=key)


@pytest.mark.parametrize("name", SCALES)
def test_the_input_gradient_is_exact_and_the_factors_that_at_the_kept_input(name: str) -> None:
    module, x = make(name), decaying(SHAPE, seed=2)
    with forced_packing():
        _, found, kept = step(tuckprop.convert(nn.Sequential(copy.deepcopy(module)), RandomTucker(0.6))[0], x)
    assert kept is not None
    exact = step(module, x)[1]
    module.zero_grad()
    assert torch.equal(found["input"], exact["input"])
    assert not torch.allclose(found["gamma"], exact["gamma"])
    assert_close(found["gamma"], step(module, kept)[1]["gamma"], **TIGHT)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_types(name: str, dtype: torch.dtype) -> None:
    module, x = make(name, dtype), decaying(SHAPE, seed=2).to(dtype)
    (expected, exact, _), (actual, found, _) = step(module, x), step(twin(module), x)
    assert torch.equal(actual, expected)
    for key, gradient in exact.items():
        assert found[key].dtype == gradient.dtype
        assert (found[key] - gradient).float().norm() <= 4 * torch.finfo(dtype).eps * gradient.float().norm(), key


@each_layer
def test_less_is_held(name: str) -> None:
    module = make(name, torch.float32)
    shape = (16, *SHAPE[1:2], 24, 6)
    x = decaying(shape, seed=2, decay=0.3).float()
    ours = tuckprop.convert(nn.Sequential(copy.deepcopy(module)), HOSVD(0.8))[0]
    assert held_bytes(module, x, leaf=False) >= x.nbytes
    assert held_bytes(ours, x, leaf=False) < 0.2 * x.nbytes
    whole = 1.1 * x.nbytes
    assert held_bytes(twin(module), x, leaf=False) < whole
    if "Response" in name:
        assert held_bytes(module, x, leaf=False) > 2 * x.nbytes


@each_layer
def test_frozen_parts(name: str) -> None:
    for part in ("input", *dict(make(name).named_parameters())):
        results = []
        for module in (make(name), twin(make(name))):
            x = decaying(SHAPE, seed=2).requires_grad_(part != "input")
            if part != "input":
                getattr(module, part).requires_grad_(False)
            module(x).square().sum().backward()
            results.append({"input": x.grad} | {key: p.grad for key, p in module.named_parameters()})
        plain, ours = results
        assert ours[part] is None
        for key in plain.keys() - {part}:
            assert_close(ours[key], plain[key], **TIGHT, msg=f"{part} frozen: {key}")


@pytest.mark.parametrize("name", SCALES)
def test_a_frozen_factor_needs_no_input(name: str) -> None:
    module = twin(make(name, torch.float32))
    module.gamma.requires_grad_(False)
    assert held_bytes(module, torch.randn(SHAPE)) <= module.gamma.nbytes


def test_a_channel_of_zeros_has_pytorchs_gradient() -> None:
    x = decaying(SHAPE, seed=2)
    x[1, :, :, 2] = 0
    x[2] = 0
    module = make("GlobalResponseNorm")
    for actual, expected in zip(step(twin(module), x)[1].values(), step(module, x)[1].values(), strict=True):
        assert actual.isfinite().all()
        assert_close(actual, expected, **TIGHT)


@each_layer
def test_finite_differences_agree(name: str) -> None:
    module = twin(make(name))
    x = decaying(SHAPE, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)


def test_in_place_it_stays_plain() -> None:
    plan = tuckprop.convert(nn.Sequential(nn.Linear(6, 6), layers.LayerScale(6, inplace=True)), HOSVD(0.5))
    assert not isinstance(plan[1], Twin)


@each_layer
def test_copies_state_and_the_way_back(name: str) -> None:
    module, x = make(name), decaying(SHAPE, seed=2)
    ours = twin(module)
    assert ours.state_dict().keys() == module.state_dict().keys()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert isinstance(other, type(module))
        assert torch.equal(step(other, x)[1]["input"], step(twin(module), x)[1]["input"])
    assert type(tuckprop.revert(ours)) is type(module)


def test_a_vision_transformers_plan_lists_them() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", init_values=1e-5, img_size=32, depth=2, embed_dim=24, num_heads=2, drop_path_rate=0.1
    )
    plan = decide(model, HOSVD(0.8))
    assert sum(site.kind == "LayerScale" for site in plan.sites) == 4
    assert not [entry for entry in plan.skipped if entry.kind in {"LayerScale", "DropPath"}]
