"""Kernels in Triton for passes over large tensors that PyTorch's operations make several of, on a GPU.

Triton comes with PyTorch's builds for GPUs, and compiles a kernel on its first use. Wherever it does not serve,
PyTorch's operations compute the same: nothing depends on these kernels but time. One file is one kernel and its
gradient; none of them is imported before it serves, as Triton itself takes long to import.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

# Offsets within a tensor are 32-bit numbers.
MOST_ELEMENTS = 2**31 - 2**16

# Larger windows are left to PyTorch: kernels are unrolled over their taps.
MOST_TAPS = 49

# Longer rows of a layer norm are left to PyTorch: a program holds whole ones.
LONGEST_ROW = 4096

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def serves(x: Tensor) -> bool:
    """Say whether the kernels take tensors such as `x`: of a floating type of up to 32 bits, on a GPU that has them."""
    ordinary = x.is_cuda and x.dtype in _TYPES and type(x) in {Tensor, nn.Parameter}
    return ordinary and 0 < x.numel() < MOST_ELEMENTS and _has_triton()


def product_precision() -> str:
    """Return how kernels multiply float32 matrices: as PyTorch is set to."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
