"""Random layers for hypothesis, valid by construction."""

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from tests.cases import LayerCase

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def convolutions(draw: st.DrawFn) -> LayerCase:
    """Draw a convolution of any geometry and an input that fits it."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = draw(st.tuples(*[st.integers(1, 4 if axes < 3 else 2)] * axes))
    dilation = draw(st.tuples(*[st.integers(1, 3 if axes < 3 else 2)] * axes))
    groups = draw(st.integers(1, 3))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers", "numbers"]))
    stride = (1,) * axes if padding == "same" else draw(st.tuples(*[st.integers(1, 3)] * axes))
    if padding == "numbers":
        padding = draw(st.tuples(*[st.integers(0, 3)] * axes))
        before = after = padding
    elif padding == "same":
        before = tuple(r // 2 for r in reach)
        after = tuple(r - r // 2 for r in reach)
    else:
        before = after = (0,) * axes
    sizes = []
    for axis in range(axes):
        # At least one window, and no more padding than the mode can take from the input.
        least = max(1, reach[axis] + 1 - before[axis] - after[axis])
        if mode in {"reflect", "circular"}:
            least = max(least, max(before[axis], after[axis]) + (mode == "reflect"))
        sizes.append(least + draw(st.integers(0, 4 if axes < 3 else 2)))
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode,
        "bias": draw(st.booleans()),
    }  # fmt: skip
    shape = (*draw(st.sampled_from([(), (1,), (2,), (3,)])), into, *sizes)
    return LayerCase(_CONVOLUTIONS[axes], shape, (into, out, kernel), options)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> LayerCase:
    """Draw a transposed convolution of any geometry and an input that fits it."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = draw(st.tuples(*[st.integers(1, 4 if axes < 3 else 2)] * axes))
    stride = draw(st.tuples(*[st.integers(1, 3 if axes < 3 else 2)] * axes))
    dilation = draw(st.tuples(*[st.integers(1, 3 if axes < 3 else 2)] * axes))
    groups = draw(st.integers(1, 3))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    padding = draw(st.tuples(*[st.integers(0, 3)] * axes))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    sizes = draw(st.tuples(*[st.integers(1, 5 if axes < 3 else 3)] * axes))
    for n, k, s, d, p, e in zip(sizes, kernel, stride, dilation, padding, extra, strict=True):
        assume((n - 1) * s - 2 * p + d * (k - 1) + e + 1 >= 1)
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "output_padding": extra,
        "bias": draw(st.booleans()),
    }  # fmt: skip
    shape = (*draw(st.sampled_from([(), (1,), (2,), (3,)])), into, *sizes)
    return LayerCase(_TRANSPOSED[axes], shape, (into, out, kernel), options)


@st.composite
def linears(draw: st.DrawFn) -> LayerCase:
    """Draw a Linear layer and an input with up to four leading axes."""
    into, out = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    leading = draw(st.lists(st.integers(1, 5), max_size=4))
    return LayerCase(nn.Linear, (*leading, into), (into, out), {"bias": draw(st.booleans())})
