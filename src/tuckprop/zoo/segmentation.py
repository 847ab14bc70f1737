"""The paper's segmentation networks: backbones and heads of segmentation-models-pytorch, in the paper's sizes.

Strides, dilations and widths follow the paper's configurations: PSPNet, DeepLabV3 and FCN see maps of an eighth of the
image, with dilated last stages; there is no auxiliary head and no dropout. The convolution that fuses the pyramid is
3 x 3 in PSPNet and DeepLabV3, nothing but the classifier comes after it, and PSPNet's pooled maps are as wide as its
result: there the library's own heads differ. The library's own are these. PSPNet does not normalise the map that is
pooled to one pixel. UPerNet normalises the backbone's maps. ResNet18 begins with one 7 x 7 convolution, not with three
of 3 x 3. The inputs of the layers that the paper compresses have the paper's shapes all the same.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.errors import ConfigError
from tuckprop.zoo._base import networks
from tuckprop.zoo._torchvision import import_torchvision
from tuckprop.zoo.fcn import FCNDecoder

_LIBRARY = "segmentation_models_pytorch"
# Pixels a side of PSPNet's pooled maps.
_POOLED = (1, 2, 3, 6)


class Segmenter(nn.Module):
    """Backbone, head and classifier of a segmentation network.

    Args:
        encoder: Images to a list of maps, from the image itself to the smallest.
        decoder: That list to one map.
        channels: Channels of that map.
        classes: Outputs at each pixel.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = nn.Conv2d(channels, classes, 1)
        initialization = _library("base.initialization")
        initialization.initialize_decoder(decoder)
        initialization.initialize_head(self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, classes, height, width]."""
        scores: Tensor = self.classifier(self.decoder(self.encoder(images)))
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def _library(part: str) -> Any:
    import_torchvision()
    try:
        return importlib.import_module(f"{_LIBRARY}.{part}")
    except ImportError as error:
        raise ConfigError(
            f"segmentation-models-pytorch is needed here ({error}): pip install 'tuckprop[models]'"
        ) from error


def _resnet18(channels: int, stride: int) -> tuple[nn.Module, Sequence[int]]:
    """Return the backbone, which makes maps down to 1 / stride of the image, and the channels of its maps."""
    encoder = _library("encoders").get_encoder("resnet18", in_channels=channels, weights=None, output_stride=stride)
    return encoder, encoder.out_channels


def _mobilenetv2(channels: int, stride: int) -> tuple[nn.Module, Sequence[int]]:
    """Return the backbone as `_resnet18` does, without the last convolution, which only a classifier needs."""
    encoder = _library("encoders").get_encoder("mobilenet_v2", in_channels=channels, weights=None, output_stride=stride)
    widen = encoder.features[-1]
    encoder.features[-1] = nn.Identity()
    return encoder, (*encoder.out_channels[:-1], widen[0].in_channels)


def _pspnet(backbone: tuple[nn.Module, Sequence[int]], width: int, classes: int) -> nn.Module:
    encoder, channels = backbone
    library, deepest = _library("decoders.pspnet.decoder"), channels[-1]
    decoder = library.PSPDecoder(channels, out_channels=width, dropout=0.0)
    decoder.psp.blocks = nn.ModuleList(library.PSPBlock(deepest, width, pixels) for pixels in _POOLED)
    decoder.conv[0] = nn.Conv2d(deepest + len(_POOLED) * width, width, 3, padding=1, bias=False)
    return Segmenter(encoder, decoder, width, classes)


def _deeplabv3(backbone: tuple[nn.Module, Sequence[int]], width: int, classes: int) -> nn.Module:
    encoder, channels = backbone
    decoder = _library("decoders.deeplabv3.decoder").DeepLabV3Decoder(
        channels[-1], width, atrous_rates=(12, 24, 36), aspp_separable=False, aspp_dropout=0.0
    )
    fuse = decoder.aspp.project[0]
    decoder.aspp.project[0] = nn.Conv2d(fuse.in_channels, width, 3, padding=1, bias=False)
    decoder.conv = decoder.bn = decoder.relu = nn.Identity()
    return Segmenter(encoder, decoder, width, classes)


@networks.register("pspnet_r18")
def pspnet_r18(classes: int, channels: int) -> nn.Module:
    """Return PSPNet (Zhao et al., CVPR 2017) on ResNet18."""
    return _pspnet(_resnet18(channels, 8), 128, classes)


@networks.register("pspnet_m")
def pspnet_m(classes: int, channels: int) -> nn.Module:
    """Return PSPNet (Zhao et al., CVPR 2017) on MobileNetV2."""
    return _pspnet(_mobilenetv2(channels, 8), 512, classes)


@networks.register("deeplabv3_r18")
def deeplabv3_r18(classes: int, channels: int) -> nn.Module:
    """Return DeepLabV3 (Chen et al., 2017) on ResNet18."""
    return _deeplabv3(_resnet18(channels, 8), 128, classes)


@networks.register("deeplabv3_m")
def deeplabv3_m(classes: int, channels: int) -> nn.Module:
    """Return DeepLabV3 (Chen et al., 2017) on MobileNetV2."""
    return _deeplabv3(_mobilenetv2(channels, 8), 512, classes)


@networks.register("fcn_r18")
def fcn_r18(classes: int, channels: int) -> nn.Module:
    """Return an FCN (Long et al., CVPR 2015) on ResNet18."""
    encoder, widths = _resnet18(channels, 8)
    return Segmenter(encoder, FCNDecoder(widths[-1], 128), 128, classes)


@networks.register("fcn_m")
def fcn_m(classes: int, channels: int) -> nn.Module:
    """Return an FCN (Long et al., CVPR 2015) on MobileNetV2; the paper's tables have none."""
    encoder, widths = _mobilenetv2(channels, 8)
    return Segmenter(encoder, FCNDecoder(widths[-1], 512), 512, classes)


@networks.register("upernet_r18")
def upernet_r18(classes: int, channels: int) -> nn.Module:
    """Return UPerNet (Xiao et al., ECCV 2018) on ResNet18."""
    encoder, widths = _resnet18(channels, 32)
    decoder = _library("decoders.upernet.decoder").UPerNetDecoder(widths, decoder_channels=512)
    return Segmenter(encoder, decoder, 512, classes)
