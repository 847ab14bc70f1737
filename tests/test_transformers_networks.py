"""Real networks of transformers: the plain gradients at a lossless setting, finite ones at a lossy one, and revert."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.forcing import forced_packing
from tests.test_timm_networks import furthest
from tuckprop import HOSVD, Dense, convert, plan, recompute, revert
from tuckprop.codecs import DensePacked
from tuckprop.layers import PackEvent, Twin, observe
from tuckprop.layers.recomputed_block import RecomputedBlock
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # transformers imports it, and it does not import beside every build of torch.
transformers = pytest.importorskip("transformers")

WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Names of BERT's settings, which others have taken over.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

# Class of the model, class of its settings, settings, and the class that must be converted.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "GPT2": ("GPT2LMHeadModel", "GPT2Config", WORDS | {"n_embd": 32, "n_layer": 2, "n_head": 4}, "Conv1D"),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", WORDS | SIZES, "LlamaRMSNorm"),
    "Mistral": ("MistralForCausalLM", "MistralConfig", WORDS | SIZES | {"num_key_value_heads": 2}, "MistralRMSNorm"),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", WORDS | SIZES | {"num_key_value_heads": 2}, "Qwen2RMSNorm"),
    "BERT": ("BertForMaskedLM", "BertConfig", WORDS | SIZES, "GELUActivation"),
    "T5": (
        "T5ForConditionalGeneration", "T5Config",
        WORDS | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "T5LayerNorm",
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", SIZES | {"image_size": 32, "patch_size": 8}, "GELUActivation"),
}  # fmt: skip
each_network = pytest.mark.parametrize("name", NETWORKS)

# Their norms compute in single precision, whatever they are given; the twins' gradients do not.
SINGLE = {"Llama", "Mistral", "Qwen2", "T5"}


def network(name: str) -> nn.Module:
    model, config, settings, _ = NETWORKS[name]
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made.double().train()


def batch(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "ViT":
        pixels = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
        return {"pixel_values": pixels, "labels": torch.arange(4) % 2}
    words = torch.randint(3, 50, (4, 12), generator=generator)
    return {"input_ids": words, "labels": words}


def step(name: str, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and every parameter's gradient of one step, with the same dropout each time."""
    model.zero_grad()
    torch.manual_seed(2)
    output = model(**batch(name))
    output.loss.backward()
    return output.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def kinds(model: nn.Module) -> set[str]:
    return {type(module).plain.__name__ for module in model.modules() if isinstance(module, Twin)}


@each_network
def test_a_lossless_codec_gives_the_plain_gradients_and_revert_the_plain_network(name: str) -> None:
    model = network(name)
    before = [type(module) for module in model.modules()]
    output, expected = step(name, model)
    convert(model, HOSVD(epsilon=1.0))
    events: list[PackEvent] = []
    with forced_packing(), observe(events.append):
        got_output, got = step(name, model)
    assert any(not isinstance(event.kept, DensePacked) for event in events)
    assert torch.equal(got_output, output)
    assert got.keys() == expected.keys()
    error, worst = furthest(got, expected)
    assert error < (1e-5 if name in SINGLE else 1e-8), worst
    revert(model)
    assert [type(module) for module in model.modules()] == before
    again_output, again = step(name, model)
    assert torch.equal(again_output, output)
    assert all(torch.equal(again[key], gradient) for key, gradient in expected.items())


@each_network
def test_a_lossy_codec_trains_a_step(name: str) -> None:
    model = network(name)
    output, expected = step(name, model)
    convert(model, HOSVD(epsilon=0.8))
    assert NETWORKS[name][3] in kinds(model)
    events: list[PackEvent] = []
    with observe(events.append):
        got_output, got = step(name, model)
    assert any(not isinstance(event.kept, DensePacked) for event in events)
    assert torch.equal(got_output, output)
    assert got.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in got.values())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(step(name, model)[0], output)


@each_network
def test_blocks_that_are_computed_again_give_the_plain_gradients(name: str) -> None:
    model = network(name)
    for module in model.modules():  # As for gradient checkpointing: a cache would be written twice.
        if hasattr(module, "config"):
            module.config.use_cache = False
    output, expected = step(name, model)
    recompute(model, Dense())
    assert any(isinstance(module, RecomputedBlock) for module in model.modules())
    got_output, got = step(name, model)
    assert torch.equal(got_output, output)
    assert got.keys() == expected.keys()
    error, worst = furthest(got, expected)
    assert error < (1e-5 if name in SINGLE else 1e-8), worst


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "T5"])  # Which takes two inputs.
def test_a_plan_measures_every_site(name: str) -> None:
    inputs = next(iter(batch(name).values()))
    found = plan(network(name), inputs, HOSVD(epsilon=0.8))
    assert NETWORKS[name][3] in {site.kind for site in found.sites}
    # Attention may leave its dropout to one function that does all of attention.
    assert {site.kind for site in found.sites if site.input_shape is None} <= {"Dropout"}
    assert 0 < found.predicted_bytes <= found.plain_bytes
