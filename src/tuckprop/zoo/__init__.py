"""Networks by name, their weights from a file or a hub, and the layers that the paper compresses in them."""

from tuckprop.zoo import digits_cnn, hub, mcunet, segmentation
from tuckprop.zoo._base import Builder, networks
from tuckprop.zoo._torchvision import import_torchvision
from tuckprop.zoo.build import build
from tuckprop.zoo.hub_weights import load_hub_weights
from tuckprop.zoo.paper_layers import paper_layers, paper_patches, paper_trained
from tuckprop.zoo.weights import Loaded, load_weights

__all__ = [
    "Builder",
    "Loaded",
    "build",
    "digits_cnn",
    "hub",
    "import_torchvision",
    "load_hub_weights",
    "load_weights",
    "mcunet",
    "networks",
    "paper_layers",
    "paper_patches",
    "paper_trained",
    "segmentation",
]
