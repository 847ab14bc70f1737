"""Networks by name, and their weights from a file."""

from tuckprop.zoo import digits_cnn, hub, mcunet
from tuckprop.zoo._base import Builder, networks
from tuckprop.zoo.build import build
from tuckprop.zoo.weights import Loaded, load_weights

__all__ = ["Builder", "Loaded", "build", "digits_cnn", "hub", "load_weights", "mcunet", "networks"]
