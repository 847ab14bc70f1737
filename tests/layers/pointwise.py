"""What the tests of pointwise layers, pools and dropout share: twins of single modules, and one step of each."""

import copy

import torch
from torch import Tensor, nn

from tuckprop.codecs import Codec, Dense
from tuckprop.layers import Site, find_twin, load_twins_for
from tuckprop.layers._twin import become_twin
from tuckprop.linalg.layout import is_dense

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def twin(module: nn.Module, codec: Codec | None = None) -> nn.Module:
    """Return a converted copy, for this codec or one that has no twins of its own."""
    converted = copy.deepcopy(module)
    load_twins_for(converted)
    kind = find_twin(converted, codec or Dense())
    assert kind is not None, f"{type(module).__name__} has no twin"
    become_twin(converted, kind, Site("here"))
    return converted


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random inputs of one shape in different memory layouts."""
    x = 2 * torch.randn(shape, dtype=torch.float64)
    inputs = {"contiguous": x, "permuted": x.permute(*reversed(range(x.dim()))).contiguous().permute(
        *reversed(range(x.dim()))
    )}  # fmt: skip
    if x.dim() == 4:
        inputs["channels last"] = x.contiguous(memory_format=torch.channels_last)
    inputs = {name: t.to(dtype) for name, t in inputs.items()}
    wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64).to(dtype)
    inputs["strided"] = wide[..., ::2]
    inputs["expanded"] = x[:1].to(dtype).expand(shape)
    return inputs


class Step:
    """One forward and backward of a module: its output and the gradient of its input."""

    def __init__(self, module: nn.Module, x: Tensor, *, leaf: bool = True, grad: Tensor | None = None) -> None:
        """Run `module` on `x`, itself a leaf, or on something computed from it, which may be overwritten."""
        self.x = x.detach().requires_grad_()
        self.given = self.x if leaf else computed(self.x)
        torch.manual_seed(5)
        self.y = module(self.given)
        if grad is None:
            generator = torch.Generator().manual_seed(3)
            grad = torch.randn(self.y.shape, generator=generator, dtype=torch.float64).to(self.y)
        self.output = self.y.detach().clone()
        (self.grad,) = torch.autograd.grad(self.y, self.x, grad, retain_graph=True)


def computed(x: Tensor) -> Tensor:
    """Return a tensor with the values and strides of `x` that is not a leaf."""
    if is_dense(x) or any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        return x * 1
    room = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    base = x.new_zeros(room)
    return base.as_strided(x.shape, x.stride()).copy_(x)


def assert_equal(one: Tensor, other: Tensor) -> None:
    """Check that two tensors have the same values, NaN in the same places."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_same_step(
    module: nn.Module, x: Tensor, *, leaf: bool = True, grad: Tensor | None = None, codec: Codec | None = None
) -> Step:
    """Check that the twin gives the plain module's output, bit for bit, and gradient; return the twin's step."""
    plain, converted = (Step(m, x, leaf=leaf, grad=grad) for m in (module, twin(module, codec)))
    assert converted.y._is_view() or type(converted.y.grad_fn) is not type(plain.y.grad_fn)
    assert_equal(converted.output, plain.output)
    assert converted.y.shape == plain.y.shape
    assert_equal(converted.grad, plain.grad)
    assert converted.grad.dtype == plain.grad.dtype
    return converted


def held_bytes(module: nn.Module, x: Tensor, *, leaf: bool = True) -> int:
    """Return the bytes of unique storages that a forward saves, the input's among them."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    given = x.detach().requires_grad_()
    given = given if leaf else computed(given)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(given)
    assert y.requires_grad
    return sum(storages.values())
