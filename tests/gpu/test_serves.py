"""Where the kernels in Triton serve, and in what precision; asked without a GPU."""

from collections.abc import Iterator

import pytest
import torch

from tuckprop import gpu


@pytest.fixture(autouse=True)
def _precision_stays() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32], ids=str)
def test_a_tensor_on_a_cpu_is_not_served(dtype: torch.dtype) -> None:
    assert not gpu.serves(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize(("allowed", "precision"), [(True, "tf32"), (False, "ieee")])
def test_float32_is_multiplied_as_pytorch_does(allowed: bool, precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    assert gpu.product_precision() == precision


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has no such setting"
)
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_the_newer_setting_counts_as_well(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision
    assert gpu.product_precision() == precision
