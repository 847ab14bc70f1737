"""Linear, on inputs with any number of leading axes.

Index legend: l.. leading axes, i input features, o output features, r ranks. The weight gradient is
    dW[o, i] = sum_{l..} G[l.., o] A[l.., i]
so a factor on a leading axis shrinks the output gradient, and a factor on the features is applied last.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.codecs import Packed
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Twin, autocast, trains, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.linalg.modes import mode_product


class FactoredMatmul(torch.autograd.Function):
    """`F.linear` that keeps its input in packed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None) -> Tensor:
        """Compute `F.linear`; keep the weight, and `packed` if the weight needs a gradient."""
        ctx.has_bias = bias is not None
        ctx.packed = None if packed is None else (type(packed), packed.meta)
        ctx.save_for_backward(weight, *(() if packed is None else packed.tensors()))
        return F.linear(x, weight, bias)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, *kept = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad @ weight if needs_x else None
        grad_weight = None
        if needs_weight:
            kind, meta = ctx.packed
            grad_weight = weight_gradient(kind.rebuild(kept, meta), grad)
        grad_bias = grad.sum_to_size(grad.shape[-1:]) if ctx.has_bias and needs_bias else None
        return grad_x, grad_weight, grad_bias, None


def weight_gradient(packed: Packed, grad: Tensor) -> Tensor:
    """Return the gradient of a Linear layer's weight, [o, i].

    Args:
        packed: The input [l.., i].
        grad: Gradient of the output, [l.., o].

    Returns:
        PyTorch's gradient at `packed.dense()`, up to rounding.
    """
    features = grad.dim() - 1
    core, factors = packed.partial(range(grad.dim()))
    leading = [axis for axis in sorted(factors) if axis != features]
    through_factors = sum(2 * grad.numel() * factors[a].shape[1] for a in leading[:1])
    through_rebuilt = 2 * prod(packed.shape) * grad.shape[-1]
    if through_factors > through_rebuilt:
        core, factors = packed.partial((features,))
        leading = []
    for axis in sorted(leading, key=lambda a: factors[a].shape[1] / factors[a].shape[0]):
        grad = mode_product(grad, factors[axis], axis)
    gradient = grad.reshape(-1, grad.shape[-1]).T @ core.reshape(-1, core.shape[-1])
    return gradient @ factors[features].T if features in factors else gradient


@uncompiled
def factored_linear(module: Twin, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a twin's product: plainly where nothing is to be kept, else through `FactoredMatmul`."""
    if not trains(module, x, weight, bias):
        return F.linear(x, weight, bias)
    x, weight, bias = autocast(x, weight, bias)
    packed = module._site.pack(x) if weight.requires_grad else None
    result: Tensor = FactoredMatmul.apply(x, weight, bias, packed)
    return result


@twin_of(nn.Linear)
class FactoredLinear(Twin, nn.Linear):
    """`nn.Linear` that keeps a packed input."""

    compresses = True

    def forward(self, input: Tensor) -> Tensor:
        """Compute `F.linear`, bit for bit. Shape [l.., i] to [l.., o]."""
        return factored_linear(self, input, self.weight, self.bias)

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the weight's gradient for an input in packed form and a gradient [l.., o] of the output."""
        return weight_gradient(packed, grad)
