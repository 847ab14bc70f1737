# mypy: allow-subclassing-any
"""Hugging Face transformers' own layers: activations, GPT-2's linear layer, RMS norms, LayerScale.

Every family of models there has a class of its own for its RMSNorm and LayerScale, most of them the same line for line.
A class is known by its forward, which is, instruction for instruction, one of those that this file has as examples.
`ReLUSquaredActivation` and `ClippedGELUActivation` stay plain: a few levels serve no derivative that goes on growing,
or that falls to 0 beyond the inputs that are told apart.
"""

import dis
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations
from transformers.pytorch_utils import Conv1D

from tuckprop.codecs import Packed
from tuckprop.layers._normalised import saves
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import worth_saving
from tuckprop.layers._scale import scale
from tuckprop.layers._twin import Twin, all_twins, autocast, trains, twin_of
from tuckprop.layers.linear import weight_gradient
from tuckprop.layers.norm_rms import FactoredRMSNorm
from tuckprop.layers.smooth import FewBitGradient, FewBitTwin, Smooth


@cache
def _example(plain: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """Return the one module of its class and settings that stands for all of them, as a function."""
    return plain(*args)


class ActivationTwin(FewBitTwin):
    """Mixin of the twins of activations without parameters."""

    def settings(self) -> tuple[Any, ...]:
        """Return the arguments of the class that gave this module."""
        return ()

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        if not worth_saving(input):
            plain: Tensor = super().forward(input)
            return plain
        kind: Any = type(self).plain
        function = Smooth(_example(kind, *self.settings()))
        result: Tensor = FewBitGradient.apply(input, function, self.derivative_bits, False)
        return result


@twin_of(activations.GELUActivation)
class FewBitGELUActivation(ActivationTwin, activations.GELUActivation):
    """transformers' `GELUActivation` that keeps a few bits an element."""

    def settings(self) -> tuple[Any, ...]:
        """Return whether it is written out in Python."""
        return (self.act is not F.gelu,)


# Not every version of transformers has all of these.
_ACTIVATIONS = (
    "AccurateGELUActivation", "FastGELUActivation", "MishActivation", "NewGELUActivation", "QuickGELUActivation",
    "SiLUActivation",
)  # fmt: skip
for _name in _ACTIVATIONS:
    if hasattr(activations, _name):
        _text = f"transformers' `{_name}` that keeps a few bits an element."
        _plain = getattr(activations, _name)
        _twin = type(f"FewBit{_name}", (ActivationTwin, _plain), {"__doc__": _text, "__module__": __name__})
        # By its name in this module pickle finds the class.
        globals()[_twin.__name__] = twin_of(_plain)(_twin)

if hasattr(activations, "GELUTanh"):

    @twin_of(activations.GELUTanh)
    class FewBitGELUTanh(ActivationTwin, activations.GELUTanh):
        """transformers' `GELUTanh` that keeps a few bits an element."""

        def settings(self) -> tuple[Any, ...]:
            """Return whether it is written out in Python."""
            return (getattr(self.act, "func", None) is not F.gelu,)


class FactoredTransposedMatmul(torch.autograd.Function):
    """A linear layer of weight [i, o] that keeps its input in packed form; index legend in linear.py."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packed: Packed | None) -> Tensor:
        """Compute the layer; keep the weight, and `packed` if the weight needs a gradient."""
        ctx.packed = None if packed is None else (type(packed), packed.meta)
        ctx.save_for_backward(weight, *(() if packed is None else packed.tensors()))
        return _conv1d(x, weight, bias)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, *kept = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad @ weight.T if needs_x else None
        grad_weight = None
        if needs_weight:
            kind, meta = ctx.packed
            grad_weight = weight_gradient(kind.rebuild(kept, meta), grad).T
        return grad_x, grad_weight, grad.sum_to_size(grad.shape[-1:]) if needs_bias else None, None


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Operation by operation as transformers, so that the rounding is the same.
    return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], -1)


@twin_of(Conv1D)
class FactoredConv1D(Twin, Conv1D):
    """transformers' `Conv1D`, a linear layer of transposed weight, that keeps a packed input."""

    compresses = True
    weight: nn.Parameter
    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit. Shape [l.., i] to [l.., o]."""
        if not trains(self, x, self.weight, self.bias):
            plain: Tensor = super().forward(x)
            return plain
        x, weight, bias = autocast(x, self.weight, self.bias)
        packed = self._site.pack(x) if weight.requires_grad else None
        result: Tensor = FactoredTransposedMatmul.apply(x, weight, bias, packed)
        return result

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the weight's gradient [i, o] for an input in packed form and a gradient [l.., o] of the output."""
        return weight_gradient(packed, grad).T


class MetTwin(Twin):
    """Mixin of the twins of classes that are known by their forward."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Lead pickle to the plain class, as no name in this module leads to the twin."""
        return _blank, (type(self).plain,), self.__dict__


def _blank(plain: Any) -> nn.Module:
    meet(plain)
    twin: Any = next(twin for (kind, _), twin in all_twins().items() if kind is plain)
    blank: nn.Module = twin.__new__(twin)
    return blank


class LlamaRMSNormTwin(MetTwin):
    """Mixin of RMS norms that compute in single precision and cast: `weight * normalised`, as in Llama and T5.

    Attributes:
        margin: Name of the attribute that is added to the mean square.
    """

    weight: nn.Parameter
    margin: ClassVar[str] = "variance_epsilon"

    def multiplier(self) -> Tensor:
        """Return what the normalised input is multiplied with, [f]."""
        return self.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit."""
        if not saves(hidden_states, self.weight):
            return self._plain(hidden_states)
        settings = self._site, list(self.weight.shape), getattr(self, self.margin), self._plain
        result: Tensor = FactoredRMSNorm.apply(hidden_states, self.multiplier(), *settings)
        return result

    def _plain(self, hidden_states: Tensor) -> Tensor:
        result: Tensor = super().forward(hidden_states)
        return result


class GemmaRMSNormTwin(LlamaRMSNormTwin):
    """Mixin of RMS norms of the form `(1 + weight) * normalised`, as in Gemma."""

    margin = "eps"

    def multiplier(self) -> Tensor:
        """Return what the normalised input is multiplied with, [f]."""
        return 1.0 + self.weight.float()


class LayerScaleTwin(MetTwin):
    """Mixin: a factor a channel."""

    lambda1: nn.Parameter

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit."""
        return scale(self, hidden_state, self.lambda1)


# The forwards that are known, with the names they have in transformers: classes are compared with them, none is run.


class _Llama:
    def forward(self: Any, hidden_states: Any) -> Any:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class _CastLast:
    def forward(self: Any, hidden_states: Any) -> Any:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return (self.weight * hidden_states).to(input_dtype)


class _T5:
    def forward(self: Any, hidden_states: Any) -> Any:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class _Gemma:
    def _norm(self: Any, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self: Any, x: Any) -> Any:
        output = self._norm(x.float())
        output = output * (1.0 + self.weight.float())
        return output.type_as(x)


class _LayerScale:
    def forward(self: Any, hidden_state: Any) -> Any:
        return hidden_state * self.lambda1


_KNOWN: dict[type, type[MetTwin]] = {
    _Llama: LlamaRMSNormTwin,
    _CastLast: LlamaRMSNormTwin,
    _T5: LlamaRMSNormTwin,
    _Gemma: GemmaRMSNormTwin,
    _LayerScale: LayerScaleTwin,
}


def _same(plain: type[nn.Module], example: type) -> bool:
    """Say whether `plain` has the methods of `example`, instruction for instruction."""
    methods = {name: method for name, method in vars(example).items() if isinstance(method, FunctionType)}
    return all(_instructions(getattr(plain, name, None)) == _instructions(method) for name, method in methods.items())


def _instructions(function: Any) -> list[tuple[str, Any]] | None:
    if not isinstance(function, FunctionType):
        return None
    # Without what says how code is laid out in a file.
    return [(step.opname, step.argval) for step in dis.get_instructions(function)]


@cache
def meet(plain: Any) -> None:
    """Register a twin for a class of transformers if its forward is one of those that are known here."""
    if issubclass(plain, Twin) or any(kind is plain for kind, _ in all_twins()):
        return
    mixin = next((mixin for example, mixin in _KNOWN.items() if _same(plain, example)), None)
    if mixin is not None:
        text = f"transformers' `{plain.__name__}` that keeps a packed input."
        twin_of(plain)(type(f"Factored{plain.__name__}", (mixin, plain), {"__doc__": text, "__module__": __name__}))
