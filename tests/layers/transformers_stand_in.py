"""Stand-ins for what the tests use of Hugging Face transformers, where it is not installed.

What matters is the same as there: names, attributes, and the operations of each forward.
"""

import functools
import math
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class GELUActivation(nn.Module):
    def __init__(self, use_gelu_python: bool = False) -> None:
        super().__init__()
        self.act = self._gelu_python if use_gelu_python else nn.functional.gelu

    def _gelu_python(self, input: Tensor) -> Tensor:
        return input * 0.5 * (1.0 + torch.erf(input / math.sqrt(2.0)))

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class GELUTanh(nn.Module):
    def __init__(self, use_gelu_tanh_python: bool = False) -> None:
        super().__init__()
        by_library = functools.partial(nn.functional.gelu, approximate="tanh")
        self.act = self._gelu_tanh_python if use_gelu_tanh_python else by_library

    def _gelu_tanh_python(self, input: Tensor) -> Tensor:
        return input * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class NewGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


class AccurateGELUActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.precomputed_constant = math.sqrt(2 / math.pi)

    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * input * (1 + torch.tanh(self.precomputed_constant * (input + 0.044715 * torch.pow(input, 3))))


class FastGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * input * (1.0 + torch.tanh(input * 0.7978845608 * (1.0 + 0.044715 * input * input)))


class QuickGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(1.702 * input)


class SiLUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.silu(input)


class MishActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.functional.mish

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class ReLUSquaredActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return torch.square(nn.functional.relu(input))


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.size()[:-1], self.nf)


class LlamaRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As most families have it; a docstring changes nothing."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class Olmo2RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return (self.weight * hidden_states).to(input_dtype)


class T5LayerNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class GemmaRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float())
        output = output * (1.0 + self.weight.float())
        return output.type_as(x)


class Dinov2LayerScale(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(config.layerscale_value * torch.ones(config.hidden_size))

    def forward(self, hidden_state: Tensor) -> Tensor:
        return hidden_state * self.lambda1


_MODULES: dict[str, list[type]] = {
    "transformers": [],
    "transformers.activations": [
        GELUActivation, GELUTanh, NewGELUActivation, AccurateGELUActivation, FastGELUActivation, QuickGELUActivation,
        SiLUActivation, MishActivation, ReLUSquaredActivation,
    ],
    "transformers.pytorch_utils": [Conv1D],
    "transformers.models": [],
    "transformers.models.llama": [],
    "transformers.models.llama.modeling_llama": [LlamaRMSNorm],
    "transformers.models.mistral": [],
    "transformers.models.mistral.modeling_mistral": [type("MistralRMSNorm", (LlamaRMSNorm,), {})],
    "transformers.models.qwen2": [],
    "transformers.models.qwen2.modeling_qwen2": [type("Qwen2RMSNorm", (LlamaRMSNorm,), {})],
    "transformers.models.olmo2": [],
    "transformers.models.olmo2.modeling_olmo2": [Olmo2RMSNorm],
    "transformers.models.t5": [],
    "transformers.models.t5.modeling_t5": [T5LayerNorm],
    "transformers.models.gemma": [],
    "transformers.models.gemma.modeling_gemma": [GemmaRMSNorm],
    "transformers.models.dinov2": [],
    "transformers.models.dinov2.modeling_dinov2": [Dinov2LayerScale],
}  # fmt: skip


def modules() -> dict[str, ModuleType]:
    """Return modules with these classes in them, by the names under which they are to be imported."""
    made = {}
    for name, classes in _MODULES.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        for kind in classes:
            kind.__module__ = name
            setattr(module, kind.__name__, kind)
        made[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, module)
    return made
