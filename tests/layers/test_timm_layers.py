"""timm's own layers: the plain output bit for bit, PyTorch's gradients with a lossless codec, less held otherwise."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

import tuckprop
from tests.cases import RandomTucker, decaying
from tests.forcing import forced_packing
from tuckprop import HOSVD, Dense
from tuckprop.codecs import Codec
from tuckprop.layers import Twin, observe
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()
layers = pytest.importorskip("timm.layers")
activations = pytest.importorskip("timm.layers.activations")
activations_me = pytest.importorskip("timm.layers.activations_me")

SHAPE = (4, 8, 7, 6)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNormAct2d": (lambda: layers.BatchNormAct2d(8), SHAPE),
    "BatchNormAct2d, no activation": (lambda: layers.BatchNormAct2d(8, apply_act=False), SHAPE),
    "LayerNorm": (lambda: layers.LayerNorm(6), SHAPE),
    "LayerNorm2d": (lambda: layers.LayerNorm2d(8), SHAPE),
    "GroupNorm": (lambda: layers.GroupNorm(8, 4), SHAPE),
    "GroupNorm1": (lambda: layers.GroupNorm1(8), SHAPE),
    "GroupNormAct": (lambda: layers.GroupNormAct(8, group_size=2), SHAPE),
    "Conv2dSame": (lambda: layers.Conv2dSame(8, 6, 3, stride=2), SHAPE),
    "Conv2dSame, depthwise": (lambda: layers.Conv2dSame(8, 8, 5, stride=2, groups=8), SHAPE),
    "StdConv2d": (lambda: layers.StdConv2d(8, 6, 3, stride=2, bias=True), SHAPE),
    "StdConv2dSame": (lambda: layers.StdConv2dSame(8, 6, 3, stride=2), SHAPE),
    "ScaledStdConv2d": (lambda: layers.ScaledStdConv2d(8, 6, 3), SHAPE),
    "ScaledStdConv2dSame": (lambda: layers.ScaledStdConv2dSame(8, 6, 3, stride=2), SHAPE),
    "GELU": (lambda: layers.GELU(), SHAPE),
    "GELUTanh": (lambda: layers.GELUTanh(), SHAPE),
    "GroupNorm1Act": (lambda: layers.GroupNorm1Act(8), SHAPE),
    "LayerNormAct": (lambda: layers.LayerNormAct(6), SHAPE),
    "LayerNormAct2d": (lambda: layers.LayerNormAct2d(8), SHAPE),
    "LayerNormActFp32": (lambda: layers.LayerNormActFp32(6), SHAPE),
    "LayerNormAct2dFp32": (lambda: layers.LayerNormAct2dFp32(8), SHAPE),
    "LayerNormFp32": (lambda: layers.LayerNormFp32(6), SHAPE),
    "LayerNorm2dFp32": (lambda: layers.LayerNorm2dFp32(8), SHAPE),
    "RmsNorm": (lambda: layers.RmsNorm(6), SHAPE),
    "RmsNormAct": (lambda: layers.RmsNormAct(6), SHAPE),
    "RmsNormActFp32": (lambda: layers.RmsNormActFp32(6), SHAPE),
    "RmsNormFp32": (lambda: layers.RmsNormFp32(6), SHAPE),
    "LayerScale": (lambda: layers.LayerScale(6, init_values=0.3), SHAPE),
    "LayerScale2d": (lambda: layers.LayerScale2d(8, init_values=0.3), SHAPE),
    "Swish": (lambda: activations.Swish(), SHAPE),
    "Mish": (lambda: activations.Mish(), SHAPE),
    "HardSwish": (lambda: activations.HardSwish(), SHAPE),
    "HardMish": (lambda: activations.HardMish(), SHAPE),
    "QuickGELU": (lambda: activations.QuickGELU(), SHAPE),
    "SwishMe": (lambda: activations_me.SwishMe(), SHAPE),
    "MishMe": (lambda: activations_me.MishMe(), SHAPE),
    "HardSwishMe": (lambda: activations_me.HardSwishMe(), SHAPE),
    "HardMishMe": (lambda: activations_me.HardMishMe(), SHAPE),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = LAYERS[name]
    torch.manual_seed(1)
    return nn.Sequential(build()).double().train(), decaying(shape, seed=2)


def converted(module: nn.Module, codec: Codec) -> nn.Module:
    # An activation alone has nothing that a lossless codec would convert; a convolution beside it does.
    wrapped = nn.Sequential(copy.deepcopy(module), nn.Conv2d(1, 1, 1).double())
    tuckprop.convert(wrapped, codec)
    return wrapped[0]  # type: ignore[no-any-return]


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.detach().clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(5)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64))
    assert x.grad is not None
    return y.detach(), {"input": x.grad} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@each_layer
def test_a_lossless_codec_gives_pytorchs_gradients(name: str) -> None:
    module, x = make(name)
    expected, exact = gradients(module, x)
    # Those that compute in single precision round there.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name.endswith("Fp32") else {"rtol": 1e-9, "atol": 1e-10}
    for forced in (False, True):
        twin = converted(module, RandomTucker(1.0) if forced else Dense())
        lossy = any(isinstance(part, Twin) and part.lossy for part in twin.modules())
        if forced:
            with forced_packing():
                actual, found = gradients(twin, x)
        else:
            assert not lossy
            actual, found = gradients(twin, x)
        assert torch.equal(actual, expected)
        for key, gradient in exact.items():
            if lossy:
                assert torch.nn.functional.cosine_similarity(found[key].flatten(), gradient.flatten(), 0) > 0.99
            else:
                torch.testing.assert_close(found[key], gradient, **tolerance, msg=key)


@each_layer
def test_it_has_a_twin_and_packs(name: str) -> None:
    module, x = make(name)
    twin = converted(module, HOSVD(0.5))
    assert isinstance(twin[0], Twin)  # type: ignore[index]
    assert isinstance(twin[0], type(module[0]))  # type: ignore[index]
    packed: list[object] = []
    with observe(packed.append):
        gradients(twin, x)
    assert packed or twin[0].lossy  # type: ignore[index]


@each_layer
def test_running_statistics_and_eval_mode_are_the_plain_layers(name: str) -> None:
    module, x = make(name)
    twin = converted(module, HOSVD(0.5))
    for _ in range(2):
        gradients(module, x)
        gradients(twin, x)
    for (key, buffer), (_, other) in zip(module.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(buffer, other), key
    assert torch.equal(twin.eval()(x), module.eval()(x))


def test_timm_is_not_imported_for_a_model_without_it() -> None:
    script = (
        "import sys, torch, tuckprop; from torch import nn; "
        "tuckprop.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), tuckprop.HOSVD()); "
        "sys.exit('timm' in sys.modules or 'tuckprop.layers.timm_layers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_mode_watches_the_activation_of_a_batch_norm() -> None:
    """Every operation in it would take a detour through Python."""
    watched = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            watched.append(_get_current_function_mode() is not None)
            return x

    model = nn.Sequential(layers.BatchNormAct2d(8, act_layer=Watching), nn.Conv2d(8, 4, 1))
    tuckprop.convert(model, HOSVD(0.8), pointwise=True)
    assert isinstance(model[0], Twin)
    model(torch.randn(4, 8, 6, 6)).sum().backward()
    assert watched == [False]
