# mypy: allow-subclassing-any
"""timm's own activations: a few bits an element say what the derivative was there, as in smooth.py.

timm's `Sigmoid`, `Tanh` and `HardSigmoid` stay plain: its networks use them as gates, one number a channel.
"""

from collections.abc import Callable
from typing import ClassVar

from timm import layers as timm_layers
from timm.layers import activations, activations_me
from torch import Tensor

from tuckprop.layers._pointwise import worth_saving, worth_saving_in_place
from tuckprop.layers._twin import twin_of
from tuckprop.layers.smooth import FewBitGradient, FewBitTwin, Smooth, gelu


@twin_of(timm_layers.GELU)
class FewBitTimmGELU(FewBitTwin, timm_layers.GELU):
    """timm's `GELU` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return gelu(input, bits=self.derivative_bits)


@twin_of(timm_layers.GELUTanh)
class FewBitTimmGELUTanh(FewBitTwin, timm_layers.GELUTanh):
    """timm's `GELUTanh` that keeps a few bits an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        return gelu(input, "tanh", bits=self.derivative_bits)


class TimmFunctionTwin(FewBitTwin):
    """Mixin of the twins of modules that call one of timm's own functions.

    Attributes:
        function: The function, of a tensor and whether to overwrite it.
    """

    function: ClassVar[Callable[..., Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        in_place = getattr(self, "inplace", False)
        if not (worth_saving_in_place(x) if in_place else worth_saving(x)):
            plain: Tensor = super().forward(x)
            return plain
        result: Tensor = FewBitGradient.apply(x, Smooth(type(self).function), self.derivative_bits, in_place)
        return result


@twin_of(activations.Swish)
class FewBitSwish(TimmFunctionTwin, activations.Swish):
    """timm's `Swish` that keeps a few bits an element."""

    function = staticmethod(activations.swish)


@twin_of(activations.Mish)
class FewBitTimmMish(TimmFunctionTwin, activations.Mish):
    """timm's `Mish` that keeps a few bits an element."""

    function = staticmethod(activations.mish)


@twin_of(activations.HardSwish)
class FewBitHardSwish(TimmFunctionTwin, activations.HardSwish):
    """timm's `HardSwish` that keeps a few bits an element."""

    function = staticmethod(activations.hard_swish)


@twin_of(activations.HardMish)
class FewBitHardMish(TimmFunctionTwin, activations.HardMish):
    """timm's `HardMish` that keeps a few bits an element."""

    function = staticmethod(activations.hard_mish)


@twin_of(activations.QuickGELU)
class FewBitQuickGELU(TimmFunctionTwin, activations.QuickGELU):
    """timm's `QuickGELU` that keeps a few bits an element."""

    function = staticmethod(activations.quick_gelu)


@twin_of(activations_me.SwishMe)
class FewBitSwishMe(TimmFunctionTwin, activations_me.SwishMe):
    """timm's `SwishMe` that keeps a few bits an element, where it keeps the input."""

    function = staticmethod(activations_me.swish_fwd)


@twin_of(activations_me.MishMe)
class FewBitMishMe(TimmFunctionTwin, activations_me.MishMe):
    """timm's `MishMe` that keeps a few bits an element, where it keeps the input."""

    function = staticmethod(activations_me.mish_fwd)


@twin_of(activations_me.HardSwishMe)
class FewBitHardSwishMe(TimmFunctionTwin, activations_me.HardSwishMe):
    """timm's `HardSwishMe` that keeps a few bits an element, where it keeps the input."""

    function = staticmethod(activations_me.hard_swish_fwd)


@twin_of(activations_me.HardMishMe)
class FewBitHardMishMe(TimmFunctionTwin, activations_me.HardMishMe):
    """timm's `HardMishMe` that keeps a few bits an element, where it keeps the input."""

    function = staticmethod(activations_me.hard_mish_fwd)
