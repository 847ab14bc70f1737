"""Linear, on inputs with any number of leading axes.

Index legend: l.. leading axes, i input features, o output features, r ranks. The weight gradient is
    dW[o, i] = sum_{l..} G[l.., o] A[l.., i]
so a factor on a leading axis shrinks the output gradient, and a factor on the features is applied last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop import native
from tuckprop.codecs import Packed
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Twin, autocast, trains, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.linalg.modes import DEEP, MOVE, mode_product, product_cost

# A library takes up to ten times as long as a compiled kernel for a product with so few columns, and somewhat longer
# for one of at most DEEP rows, where the other operand is transposed. More rows are summed so many at a time.
_FEW_COLUMNS = 16


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
            grad_weight = weight_gradient(kind.rebuild(kept, meta), grad).to(weight.dtype)
        grad_bias = grad.sum_to_size(grad.shape[-1:]) if ctx.has_bias and needs_bias else None
        return grad_x, grad_weight, grad_bias, None


def weight_gradient(packed: Packed, grad: Tensor) -> Tensor:
    """Return the gradient of a Linear layer's weight, [o, i].

    Args:
        packed: The input [l.., i].
        grad: Gradient of the output, [l.., o].

    Returns:
        PyTorch's gradient at `packed.dense()`, up to rounding, in the dtype that `packed` is multiplied in.
    """
    features = grad.dim() - 1
    core, factors = packed.partial(range(grad.dim()))
    leading = sorted((a for a in factors if a != features), key=lambda a: factors[a].shape[1] / factors[a].shape[0])
    matrices = [factors[axis] for axis in leading]
    if leading and _factored_cost(core, matrices, grad) > _rebuilt_cost(core, matrices, grad):
        core, factors = packed.partial((features,))
        leading = []
    for axis in leading:
        grad = mode_product(grad, factors[axis], axis)
    rows, inner = grad.reshape(-1, grad.shape[-1]), core.reshape(-1, core.shape[-1])
    if features not in factors:
        return rows.to(inner.dtype).T @ inner
    few = native.reads(rows) and inner.dtype == torch.float32 and (inner.shape[1] <= _FEW_COLUMNS or len(inner) <= DEEP)
    products = products_of_columns(rows, inner) if few else rows.to(inner.dtype).T @ inner
    return products @ factors[features].T


def products_of_columns(rows: Tensor, inner: Tensor) -> Tensor:
    """Return `rows^T inner` for rows [n, o] and inner [n, r]: [o, r], a transposed tensor."""
    pieces = zip(rows.split(DEEP), inner.split(DEEP), strict=True)
    first, *others = (mode_product(part, other, 0) for part, other in pieces)
    for product in others:
        first += product
    return first.T


def _factored_cost(core: Tensor, leading: list[Tensor], grad: Tensor) -> float:
    """Return the cost of contracting the gradient with these factors in turn, in operations of a large product."""
    elements, cost = float(grad.numel()), 0.0
    for factor in leading:
        size, rank = factor.shape
        cost += product_cost(elements, size, rank)
        elements *= rank / size
    return cost + _last_cost(elements, core.numel(), core.shape[-1])


def _rebuilt_cost(core: Tensor, leading: list[Tensor], grad: Tensor) -> float:
    """Return the cost of multiplying these factors out instead, the smallest growth first; as above."""
    elements, cost = float(core.numel()), 0.0
    for factor in reversed(leading):
        size, rank = factor.shape
        cost += product_cost(elements, rank, size)
        elements *= size / rank
    return cost + _last_cost(grad.numel(), elements, core.shape[-1])


def _last_cost(grad_elements: float, elements: float, columns: int) -> float:
    """Return the cost of the product of what is left of gradient and input: its arithmetic, and reading both."""
    return 2 * grad_elements * columns + MOVE * (grad_elements + elements)


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
