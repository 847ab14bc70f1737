# mypy: allow-subclassing-any
"""torchvision's own layers. Its convolutions, batch norms and activations are PyTorch's; those that are not are here.

`FrozenBatchNorm2d` and `StochasticDepth` multiply with what needs no gradient, and so keep that alone.
"""

from torchvision.models import convnext
from torchvision.ops import FrozenBatchNorm2d, Permute, StochasticDepth

from tuckprop.layers._twin import nothing_to_gain, twin_of
from tuckprop.layers.norm_layer import LayerNormTwin

nothing_to_gain(FrozenBatchNorm2d, Permute, StochasticDepth)


@twin_of(convnext.LayerNorm2d)
class FactoredTorchvisionLayerNorm2d(LayerNormTwin, convnext.LayerNorm2d):
    """torchvision's `LayerNorm2d` that keeps a packed normalised input."""
