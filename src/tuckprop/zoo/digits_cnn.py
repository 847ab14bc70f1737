"""A small network for 8 x 8 digits: four convolutions, trained from scratch in seconds on any machine."""

from torch import nn

from tuckprop.zoo._base import networks


@networks.register("digits_cnn")
def digits_cnn(classes: int, channels: int) -> nn.Module:
    """Return the network; images of any size from 4 x 4, [batch, channels, height, width].

    It has no norms; He's initialisation (He et al., ICCV 2015) lets plain SGD start without them.
    """
    network = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network
