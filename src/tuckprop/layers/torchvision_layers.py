# mypy: allow-subclassing-any
"""torchvision's own layers. Its convolutions, batch norms and activations are PyTorch's; those that are not are here.

`FrozenBatchNorm2d` and `StochasticDepth` hold nothing of the activation's size and need no twin.
"""

from torchvision.models import convnext

from tuckprop.layers._twin import twin_of
from tuckprop.layers.norm_layer import LayerNormTwin


@twin_of(convnext.LayerNorm2d)
class FactoredTorchvisionLayerNorm2d(LayerNormTwin, convnext.LayerNorm2d):
    """torchvision's `LayerNorm2d` that keeps a packed normalised input."""
