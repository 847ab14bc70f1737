"""Layers of Hugging Face transformers: the plain output bit for bit, PyTorch's gradients, less held.

Where the library is not installed, stand-ins take its place.
"""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import RandomTucker, decaying
from tests.forcing import forced_packing
from tests.layers import transformers_stand_in
from tests.layers.pointwise import held_bytes, twin
from tuckprop import HOSVD, Dense
from tuckprop.codecs import Codec
from tuckprop.layers import Twin, load_twins_for, observe
from tuckprop.spectra import explained_variance
from tuckprop.zoo._torchvision import import_torchvision

SHAPE = (6, 10, 8)


@pytest.fixture(autouse=True, scope="module")
def _library() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("transformers") is None:
            for name, module in transformers_stand_in.modules().items():
                patch.setitem(sys.modules, name, module)
        else:
            import_torchvision()
        yield


def of(module: str, name: str, *args: Any) -> Callable[[], nn.Module]:
    """Return what makes a module of a class of transformers."""
    return lambda: getattr(import_module(f"transformers.{module}"), name)(*args)


NORMS = {
    name: of(f"models.{family}.modeling_{family}", name, SHAPE[-1])
    for family, name in {
        "llama": "LlamaRMSNorm", "mistral": "MistralRMSNorm", "qwen2": "Qwen2RMSNorm", "olmo2": "Olmo2RMSNorm",
        "t5": "T5LayerNorm", "gemma": "GemmaRMSNorm",
    }.items()
}  # fmt: skip
LAYERS = NORMS | {
    "Conv1D": of("pytorch_utils", "Conv1D", 5, SHAPE[-1]),
    "Dinov2LayerScale": of(
        "models.dinov2.modeling_dinov2", "Dinov2LayerScale", SimpleNamespace(layerscale_value=0.3, hidden_size=8)
    ),
}
ACTIVATIONS = {
    "GELUActivation": of("activations", "GELUActivation"),
    "GELUActivation, in Python": of("activations", "GELUActivation", True),
    "GELUTanh": of("activations", "GELUTanh"),
    "GELUTanh, in Python": of("activations", "GELUTanh", True),
    "NewGELUActivation": of("activations", "NewGELUActivation"),
    "AccurateGELUActivation": of("activations", "AccurateGELUActivation"),
    "FastGELUActivation": of("activations", "FastGELUActivation"),
    "QuickGELUActivation": of("activations", "QuickGELUActivation"),
    "SiLUActivation": of("activations", "SiLUActivation"),
    "MishActivation": of("activations", "MishActivation"),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_norm = pytest.mark.parametrize("name", NORMS)
each_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    module = (LAYERS | ACTIVATIONS)[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(module).to(dtype).train()


def converted(module: nn.Module, codec: Codec) -> nn.Module:
    return tuckprop.convert(copy.deepcopy(module), codec)


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.detach().clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(5)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype))
    assert x.grad is not None
    return y.detach(), {"input": x.grad} | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@each_layer
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1.0), RandomTucker(1.0)], ids=repr)
def test_a_lossless_codec_gives_pytorchs_gradients(name: str, codec: Codec) -> None:
    module, x = make(name), decaying(SHAPE, seed=2)
    expected, exact = step(module, x)
    ours = converted(module, codec)
    with forced_packing():
        actual, found = step(ours, x)
    assert torch.equal(actual, expected)
    assert found.keys() == exact.keys()
    # The norms compute in single precision, whatever they are given.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name in NORMS else {"rtol": 1e-9, "atol": 1e-10}
    for key, gradient in exact.items():
        assert_close(found[key], gradient, **tolerance, msg=key)


@each_layer
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
def test_half_precision(name: str, weights: torch.dtype) -> None:
    """Of the input, and of the weights or not."""
    if name == "Conv1D" and weights == torch.float32:
        pytest.skip("PyTorch refuses a product of two types")
    module, x = make(name, weights), decaying(SHAPE, seed=2).bfloat16()
    expected, exact = step(module, x)
    actual, found = step(converted(module, Dense()), x)
    assert torch.equal(actual, expected)
    assert actual.dtype == expected.dtype
    for key, gradient in exact.items():
        assert found[key].dtype == gradient.dtype
        assert (found[key] - gradient).float().norm() <= 0.02 * gradient.float().norm(), key


@pytest.mark.parametrize("name", ["Conv1D", "LlamaRMSNorm"])
def test_autocast(name: str) -> None:
    module, x = make(name, torch.float32), decaying(SHAPE, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, exact = step(module, x)
        actual, found = step(converted(module, Dense()), x)
    assert torch.equal(actual, expected)
    assert actual.dtype == expected.dtype
    for key, gradient in exact.items():
        assert_close(found[key], gradient, rtol=0.02, atol=0.02, msg=key)


@each_norm
def test_in_double_precision_the_gradients_are_those_of_the_formula(name: str) -> None:
    """Closer than the plain layer's own, which computes in single precision."""
    module, x = make(name), decaying(SHAPE, seed=2)
    found = step(converted(module, Dense()), x)[1]

    class Formula(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(module[0].weight.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            offset = 1.0 if name == "GemmaRMSNorm" else 0.0
            return (offset + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    exact = step(nn.Sequential(Formula()), x)[1]
    tolerance = 1e-6 if name == "GemmaRMSNorm" else 1e-9  # Its 1 + weight is a sum in single precision.
    for key, gradient in exact.items():
        assert_close(found[key], gradient, rtol=tolerance, atol=tolerance, msg=key)


@each_layer
def test_less_is_held(name: str) -> None:
    module = make(name, torch.float32)
    x = decaying((16, 64, 8), seed=2, decay=0.3).float()
    plain, ours = held_bytes(module, x, leaf=False), held_bytes(converted(module, HOSVD(0.8)), x, leaf=False)
    assert plain >= x.nbytes
    assert ours < 0.5 * plain
    if name in NORMS:  # The input and the normalised input: one of them is enough.
        assert held_bytes(converted(module, Dense()), x, leaf=False) < 0.7 * plain


@each_layer
def test_it_packs_keeps_its_state_and_is_plain_again(name: str) -> None:
    module = make(name)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    ours = converted(module, HOSVD(0.5))
    assert isinstance(ours[0], Twin)
    assert isinstance(ours[0], type(module[0]))
    events: list[object] = []
    with observe(events.append):
        step(ours, decaying(SHAPE, seed=2))
    assert len(events) == 1
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    tuckprop.revert(ours)
    assert type(ours[0]) is type(module[0])


@each_layer
def test_eval_mode_and_no_grad_are_plain(name: str) -> None:
    module, x = make(name), decaying(SHAPE, seed=2)
    ours = converted(module, HOSVD(0.5))
    with torch.no_grad():
        assert torch.equal(ours(x), module(x))
    assert torch.equal(ours.eval()(x), module.eval()(x))


@pytest.mark.parametrize("name", [*LAYERS, "QuickGELUActivation", "SiLUActivation"])
def test_copies_and_pickles(name: str) -> None:
    ours, x = twin(make(name)[0]), decaying(SHAPE, seed=2)
    expected = step(ours, x)[1]["input"]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert torch.equal(step(other, x)[1]["input"], expected)


@each_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_activation_keeps_four_bits_an_element(name: str, dtype: torch.dtype) -> None:
    module, x = make(name, dtype)[0], torch.randn(40, 50).to(dtype)
    ours = twin(module)
    (expected, exact), (actual, found) = step(module, x), step(ours, x)
    assert torch.equal(actual, expected)
    cosine = torch.nn.functional.cosine_similarity(found["input"].flatten(), exact["input"].flatten(), 0)
    assert cosine > 0.99
    assert held_bytes(ours, x) == x.numel() // 2
    assert held_bytes(module, x) >= x.nbytes


def test_a_derivative_that_goes_on_growing_has_no_twin() -> None:
    plan = tuckprop.convert(nn.Sequential(nn.Linear(3, 3), of("activations", "ReLUSquaredActivation")()), HOSVD(0.5))
    assert not isinstance(plan[1], Twin)


def network() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = NORMS["LlamaRMSNorm"]()
            self.into = of("pytorch_utils", "Conv1D", 16, 8)()
            self.act = of("activations", "NewGELUActivation")()
            self.out = of("pytorch_utils", "Conv1D", 8, 16)()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(self.act(self.into(self.norm(x))))

    torch.manual_seed(1)
    return nn.Sequential(Block(), Block(), nn.Linear(8, 3))


def test_a_plan_lists_them_and_last_counts_conv1d_among_linear_layers() -> None:
    x = torch.randn(4, 6, 8)
    plan = tuckprop.plan(network(), x, HOSVD(0.8))
    kinds = [site.kind for site in plan.sites]
    assert kinds == [*["LlamaRMSNorm", "Conv1D", "NewGELUActivation", "Conv1D"] * 2, "Linear"]
    assert tuckprop.freeze(network(), last=2) == ["1.into", "1.out"]
    model = tuckprop.convert(network(), HOSVD(0.8), last=1)
    assert [name for name, module in model.named_modules() if isinstance(module, Twin)] == ["1.out"]
    again = tuckprop.convert(network(), tuckprop.Plan.from_json(plan.to_json()))
    assert [type(m).plain.__name__ for m in again.modules() if isinstance(m, Twin)] == kinds


def test_its_axes_are_those_of_a_linear_layer() -> None:
    found = explained_variance(network(), torch.randn(4, 6, 8), ["0.into"])
    assert found["0.into"].axes == ("batch", "tokens", "features")


def test_a_network_learns_the_same_with_a_lossless_codec() -> None:
    x, results = torch.randn(4, 6, 8), []
    for model in (network(), tuckprop.convert(network(), Dense())):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
        results.append(model(x).detach())
    assert_close(*results)


def test_a_class_that_computes_otherwise_is_left_alone() -> None:
    llama = type(NORMS["LlamaRMSNorm"]())

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    other = type("OtherRMSNorm", (llama,), {"forward": forward, "__module__": llama.__module__})
    same = type("SameRMSNorm", (llama,), {"__module__": llama.__module__})
    for kind, known in ((other, False), (same, True)):
        model = tuckprop.convert(nn.Sequential(nn.Linear(8, 8), kind(8)), HOSVD(0.5))
        assert isinstance(model[1], Twin) == known


def test_transformers_is_not_imported_for_a_model_without_it() -> None:
    script = (
        "import sys, torch, tuckprop; from torch import nn; "
        "tuckprop.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), tuckprop.HOSVD()); "
        "sys.exit('transformers' in sys.modules or 'tuckprop.layers.transformers_layers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_class_is_met_once() -> None:
    module = NORMS["LlamaRMSNorm"]()
    load_twins_for(module)
    assert type(twin(module)) is type(twin(NORMS["LlamaRMSNorm"]()))
