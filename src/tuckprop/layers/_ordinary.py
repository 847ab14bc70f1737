"""Tensors and calls that a saver can serve: any other is for the plain op."""

import torch
from torch import Tensor, nn


def is_ordinary(x: Tensor) -> bool:
    """Say whether `x` is floating, strided and has elements, and this call is run as it is written.

    Not run so are calls that are compiled, traced, or transformed by `torch.func`.
    """
    return (
        type(x) in {Tensor, nn.Parameter}
        and x.is_floating_point()
        and x.layout == torch.strided
        and not x.is_meta
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )
