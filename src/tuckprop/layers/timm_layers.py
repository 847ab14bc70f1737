"""timm's own layers: norms with an activation or a change of axes in them, convolutions that compute their padding."""

from typing import Any

import torch.nn.functional as F
from timm import layers as timm_layers
from torch import Tensor, nn

from tuckprop.codecs import Packed
from tuckprop.layers._contraction import weight_gradient
from tuckprop.layers._geometry import Geometry
from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.layers.conv import factored_convolution, geometry_of
from tuckprop.layers.norm_batch import BatchNormTwin
from tuckprop.layers.norm_group import GroupNormTwin
from tuckprop.layers.norm_layer import LayerNormTwin
from tuckprop.layers.norm_rms import RMSNormTwin


@twin_of(timm_layers.BatchNormAct2d)
class FactoredBatchNormAct2d(BatchNormTwin, timm_layers.BatchNormAct2d):
    """timm's `BatchNormAct2d` that keeps a packed normalised input; its activation module has its own twin."""


@twin_of(timm_layers.LayerNorm)
class FactoredTimmLayerNorm(LayerNormTwin, timm_layers.LayerNorm):
    """timm's `LayerNorm` that keeps a packed normalised input."""


@twin_of(timm_layers.LayerNorm2d)
class FactoredLayerNorm2d(LayerNormTwin, timm_layers.LayerNorm2d):
    """timm's `LayerNorm2d` that keeps a packed normalised input."""


@twin_of(timm_layers.GroupNorm)
class FactoredTimmGroupNorm(GroupNormTwin, timm_layers.GroupNorm):
    """timm's `GroupNorm` that keeps a packed normalised input."""


@twin_of(timm_layers.GroupNorm1)
class FactoredGroupNorm1(GroupNormTwin, timm_layers.GroupNorm1):
    """timm's `GroupNorm1` that keeps a packed normalised input."""


@twin_of(timm_layers.GroupNormAct)
class FactoredGroupNormAct(GroupNormTwin, timm_layers.GroupNormAct):
    """timm's `GroupNormAct` that keeps a packed normalised input."""


# Not every version of timm has all of these. Each calls the one function that its mixin answers.
_OTHERS: dict[str, type[InterceptingTwin]] = {
    "GroupNorm1Act": GroupNormTwin,
    "LayerNormAct": LayerNormTwin,
    "LayerNormAct2d": LayerNormTwin,
    "LayerNormAct2dFp32": LayerNormTwin,
    "LayerNormActFp32": LayerNormTwin,
    "LayerNormFp32": LayerNormTwin,
    "LayerNorm2dFp32": LayerNormTwin,
    "RmsNorm": RMSNormTwin,
    "RmsNormAct": RMSNormTwin,
    "RmsNormActFp32": RMSNormTwin,
    "RmsNormFp32": RMSNormTwin,
}
for _name, _mixin in _OTHERS.items():
    if hasattr(timm_layers, _name):
        _text = f"timm's `{_name}` that keeps a packed normalised input."
        _twin = type(
            f"Factored{_name}", (_mixin, getattr(timm_layers, _name)), {"__doc__": _text, "__module__": __name__}
        )
        # By its name in this module pickle finds the class.
        globals()[_twin.__name__] = twin_of(getattr(timm_layers, _name))(_twin)


@uncompiled
def conv2d(
    module: Twin,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Compute `F.conv2d`, keeping a packed input; arguments after `module` are that function's."""

    def plain(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, stride, padding, dilation, groups)

    geometry = geometry_of(tuple(weight.shape[2:]), stride, padding, dilation, groups)
    return factored_convolution(module, input, weight, bias, plain, geometry)


class ConvolutionCallTwin(InterceptingTwin, nn.Conv2d):
    """Mixin of every Conv2d whose forward calls `F.conv2d` on an input or weight that it computes."""

    compresses = True
    functional = staticmethod(F.conv2d)
    saver = staticmethod(conv2d)

    @property
    def _geometry(self) -> Geometry:
        return geometry_of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the gradient of the weight that the convolution sees, for a packed input as it sees it."""
        return weight_gradient(packed, grad, self.weight, self._geometry)


@twin_of(timm_layers.Conv2dSame)
class FactoredConv2dSame(ConvolutionCallTwin, timm_layers.Conv2dSame):
    """timm's `Conv2dSame` that keeps a packed input, padded."""


@twin_of(timm_layers.StdConv2d)
class FactoredStdConv2d(ConvolutionCallTwin, timm_layers.StdConv2d):
    """timm's `StdConv2d` that keeps a packed input."""


@twin_of(timm_layers.StdConv2dSame)
class FactoredStdConv2dSame(ConvolutionCallTwin, timm_layers.StdConv2dSame):
    """timm's `StdConv2dSame` that keeps a packed input, padded."""


@twin_of(timm_layers.ScaledStdConv2d)
class FactoredScaledStdConv2d(ConvolutionCallTwin, timm_layers.ScaledStdConv2d):
    """timm's `ScaledStdConv2d` that keeps a packed input."""


@twin_of(timm_layers.ScaledStdConv2dSame)
class FactoredScaledStdConv2dSame(ConvolutionCallTwin, timm_layers.ScaledStdConv2dSame):
    """timm's `ScaledStdConv2dSame` that keeps a packed input, padded."""
