"""Windows over a factor against PyTorch's own convolutions, and padding against its adjoint."""

import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn
from torch.testing import assert_close

from tests.cases import LayerCase, decaying
from tests.strategies import convolutions, transposed_convolutions
from tuckprop.layers._geometry import Geometry
from tuckprop.layers.conv import geometry_of

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def geometry(module: nn.Module) -> Geometry:
    return geometry_of(
        module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
    )


@given(convolutions())
def test_windows_are_what_each_tap_reads(case: LayerCase) -> None:
    """With one axis, one channel and taps w: y[m] = sum_k w[k] windows[m, k]."""
    module = case.module()
    geo = geometry(module)
    for axis, size in enumerate(case.shape[-len(geo.kernel) :]):
        factor = decaying((size, 3), seed=1)
        taps = decaying((geo.kernel[axis],), seed=2)
        line = nn.Conv1d(
            1, 1, geo.kernel[axis], stride=geo.stride[axis], dilation=geo.dilation[axis],
            padding=module.padding if isinstance(module.padding, str) else module.padding[axis],
            padding_mode=module.padding_mode, bias=False, dtype=torch.float64,
        )  # fmt: skip
        line.weight.data[:] = taps
        expected = line(factor.T[:, None])[:, 0].T
        windows = geo.windows(factor, axis, len(expected))
        assert windows.shape == (len(expected), geo.kernel[axis], 3)
        assert_close(torch.einsum("mkr,k->mr", windows, taps), expected, **TIGHT)


@given(transposed_convolutions())
def test_windows_of_a_transposed_convolution_are_where_each_tap_writes(case: LayerCase) -> None:
    module = case.module()
    axes = len(module.kernel_size)
    geo = Geometry(
        module.kernel_size, module.stride, tuple((p, p) for p in module.padding), module.dilation, transposed=True,
        output_padding=module.output_padding,
    )  # fmt: skip
    for axis, size in enumerate(case.shape[-axes:]):
        factor = decaying((size, 3), seed=1)
        taps = decaying((geo.kernel[axis],), seed=2)
        expected = F.conv_transpose1d(
            factor.T[:, None], taps[None, None], stride=module.stride[axis], padding=module.padding[axis],
            output_padding=module.output_padding[axis], dilation=module.dilation[axis],
        )[:, 0].T  # fmt: skip
        windows = geo.windows(factor, axis, len(expected))
        assert_close(torch.einsum("mkr,k->mr", windows, taps), expected, **TIGHT)


@given(convolutions())
def test_implicit_and_explicit_padding_make_up_the_padding(case: LayerCase) -> None:
    geo = geometry(case.module())
    for axis, (before, after) in enumerate(geo.padding):
        assert geo.implicit[axis] + geo.explicit[axis][0] == before
        assert geo.implicit[axis] + geo.explicit[axis][1] == after
        assert min(geo.explicit[axis]) >= 0
        assert geo.padding_mode == "zeros" or geo.implicit[axis] == 0


@given(convolutions())
def test_padding_and_its_adjoint(case: LayerCase) -> None:
    """`<pad(x), g> = <x, adjoint(g)>` for every x and g."""
    geo = geometry(case.module())
    x = decaying(case.shape if len(case.shape) == len(geo.kernel) + 2 else (1, *case.shape), seed=1)
    padded = geo.pad_input(x)
    grad = decaying(tuple(padded.shape), seed=2)
    adjoint = geo.pad_input_adjoint(grad, x.shape)
    assert adjoint.shape == x.shape
    assert not adjoint.requires_grad
    assert_close((padded * grad).sum(), (x * adjoint).sum(), rtol=1e-10, atol=1e-10)
    assert geo.pads_explicitly == (padded.shape != x.shape)
