"""Kernels in Triton for passes over large tensors that PyTorch's operations make several of, on a GPU.

Triton comes with PyTorch's builds for GPUs, and compiles a kernel on its first use. Wherever it does not serve,
PyTorch's operations compute the same: nothing depends on these kernels but time. One file is one kernel and its
gradient; none of them is imported before it serves, as Triton itself takes long to import.
"""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

log = logging.getLogger("tuckprop")

# Offsets within a tensor are 32-bit numbers.
MOST_ELEMENTS = 2**31 - 2**16

# Larger windows are left to PyTorch: kernels are unrolled over their taps.
MOST_TAPS = 49

# Longer rows of a layer norm are left to PyTorch: a program holds whole ones.
LONGEST_ROW = 4096

# Of NVIDIA's GPUs; older ones Triton does not know.
_LEAST_CAPABILITY = (7, 0)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves(x: Tensor) -> bool:
    """Say whether the kernels take tensors such as `x`: of a floating type of up to 32 bits, on the current GPU."""
    ordinary = x.is_cuda and x.dtype in _TYPES and type(x) in {Tensor, nn.Parameter} and 0 < x.numel() < MOST_ELEMENTS
    return ordinary and x.device.index == torch.cuda.current_device() and _works(x.device)


@cache
def _works(device: torch.device) -> bool:
    """Say whether kernels compile and start on this GPU; tried once."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    try:
        from tuckprop.gpu import flags

        x = torch.ones(8, device=device)
        flags.clamp(x, torch.empty_like(x), 0.0, None)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        log.warning("Triton does not work here, PyTorch's operations serve instead: %s", reason.splitlines()[0])
        return False
    return True


def product_precision() -> str:
    """Return how kernels multiply float32 matrices: as PyTorch is set to."""
    # Where the newer setting was used, PyTorch refuses to tell the older one.
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if setting == "none":
        setting = getattr(torch.backends, "fp32_precision", "none")
    if setting is None:
        return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return "tf32" if setting == "tf32" else "ieee"
