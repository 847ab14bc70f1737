"""Which layers the paper's code trains and compresses in its segmentation networks, "5 layers" and "10 layers".

And with which patches its baseline, Gradient Filter, does so.

Source: the configurations of Gradient Filter (Yang et al., CVPR 2023), which the paper takes over.
"""

from collections.abc import Mapping
from typing import TypeVar

from tuckprop.errors import ConfigError

_RESNET_4 = tuple(f"encoder.layer4.{block}.conv{number}" for block in (0, 1) for number in (1, 2))
_MOBILENET_17 = ("encoder.features.17.conv.0.0", "encoder.features.17.conv.1.0", "encoder.features.17.conv.2")
_PSP = ("decoder.conv.0",)
_ASPP = (*(f"decoder.aspp.convs.{number}.0" for number in range(4)), "decoder.aspp.project.0")
_FCN = ("decoder.convs.0.0", "decoder.convs.1.0", "decoder.conv_cat.0")
_LATERAL = tuple(f"decoder.fpn_lateral_blocks.{number}.conv_norm_relu.0" for number in range(3))
_FPN = (*(f"decoder.fpn_conv_blocks.{number}.0" for number in range(3)), "decoder.fusion_block.0")

_LAYERS = {
    "pspnet_r18": {5: _PSP, 10: (*_RESNET_4, *_PSP)},
    "pspnet_m": {
        5: _PSP,
        10: ("encoder.features.16.conv.1.0", "encoder.features.16.conv.2", *_MOBILENET_17, *_PSP),
    },
    "deeplabv3_r18": {5: _ASPP, 10: (*_RESNET_4, *_ASPP)},
    "deeplabv3_m": {5: _ASPP, 10: ("encoder.features.16.conv.2", *_MOBILENET_17, *_ASPP)},
    "fcn_r18": {
        5: (*_RESNET_4[2:], *_FCN),
        10: (
            *("encoder.layer3.1.conv1", "encoder.layer3.1.conv2", "encoder.layer4.0.conv1", "encoder.layer4.0.conv2"),
            *("encoder.layer4.0.downsample.0", *_RESNET_4[2:], *_FCN),
        ),
    },
    "upernet_r18": {5: ("decoder.psp.out_conv.0", *_FPN), 10: ("decoder.psp.out_conv.0", *_LATERAL, *_FPN)},
}

_ASPP_UNITS = (*(f"decoder.aspp.convs.{number}" for number in range(4)), "decoder.aspp.project")
_FPN_UNITS = ("decoder.psp.out_conv", "decoder.fpn_conv_blocks", "decoder.fusion_block")
# A block's last convolution and its norm.
_MOBILENET_16_NARROW = ("encoder.features.16.conv.2", "encoder.features.16.conv.3")

_TRAINED = {
    "pspnet_r18": {5: ("decoder",), 10: ("encoder.layer4", "decoder")},
    "pspnet_m": {
        5: ("decoder",),
        10: ("encoder.features.16.conv.1", *_MOBILENET_16_NARROW, "encoder.features.17", "decoder"),
    },
    "deeplabv3_r18": {5: _ASPP_UNITS, 10: (*_RESNET_4, *_ASPP_UNITS)},
    "deeplabv3_m": {5: _ASPP_UNITS, 10: (*_MOBILENET_16_NARROW, "encoder.features.17", "decoder")},
    "fcn_r18": {5: ("encoder.layer4.1", "decoder"), 10: ("encoder.layer3.1", "encoder.layer4", "decoder")},
    "upernet_r18": {
        5: _FPN_UNITS,
        10: ("decoder.psp.blocks.0", "decoder.psp.blocks.1", "decoder.fpn_lateral_blocks", *_FPN_UNITS),
    },
}

# Gradient Filter's patches: of DeepLabV3's pyramid, where they follow the dilation, and of UPerNet's levels.
_ASPP_PATCHES = dict(zip(_ASPP, (3, 3, 6, 9, 3), strict=True))
_LEVEL_PATCHES = dict(zip((*_LATERAL, *_FPN, "decoder.psp.out_conv.0"), (2, 4, 8, 2, 4, 8, 8, 2), strict=True))
# The patch of the other layers, and of those that differ.
_PATCHES: dict[str, dict[int, tuple[int, dict[str, int]]]] = {
    "pspnet_r18": {5: (4, {}), 10: (4, {})},
    "pspnet_m": {5: (4, {}), 10: (4, {})},
    "deeplabv3_r18": {5: (2, _ASPP_PATCHES), 10: (2, _ASPP_PATCHES)},
    "deeplabv3_m": {5: (3, _ASPP_PATCHES), 10: (3, _ASPP_PATCHES)},
    "fcn_r18": {5: (4, {}), 10: (2, {})},
    "upernet_r18": {5: (2, _LEVEL_PATCHES), 10: (2, _LEVEL_PATCHES)},
}

_Entry = TypeVar("_Entry")


def paper_layers(name: str, count: int) -> tuple[str, ...]:
    """Return the layers that the paper's code compresses, and counts, where it speaks of the last 5 or 10.

    It names more layers than it compresses, except in FCN and in DeepLabV3 and UPerNet at 5: PSPNet has 1 and 5 (6 on
    MobileNetV2), DeepLabV3 9 at 10, UPerNet 8 at 10. The rest of what it trains, `paper_trained`, is uncompressed and
    uncounted: the convolutions after the pools of PSPNet, UPerNet and DeepLabV3 on MobileNetV2, and the shortcut of
    PSPNet's last stage.

    Args:
        name: A segmentation network of the zoo.
        count: 5 or 10.

    Returns:
        Names of modules of that network, in its order.

    Raises:
        ConfigError: The paper has no such network or number.

    Example:
        >>> paper_layers("pspnet_r18", 5)
        ('decoder.conv.0',)
    """
    return _find(_LAYERS, name, count)


def paper_trained(name: str, count: int) -> tuple[str, ...]:
    """Return what the paper's code trains where it speaks of the last 5 or 10 layers; all else is frozen.

    Args:
        name: A segmentation network of the zoo.
        count: 5 or 10.

    Returns:
        Names of modules of that network, which are trained with all that they contain: layers, blocks, the classifier.

    Raises:
        ConfigError: The paper has no such network or number.

    Example:
        >>> paper_trained("pspnet_r18", 5)
        ('decoder', 'classifier')
    """
    return (*_find(_TRAINED, name, count), "classifier")


def paper_patches(name: str, count: int) -> dict[str, int]:
    """Return the side of Gradient Filter's patch in each layer of `paper_layers`, which differs from layer to layer.

    Args:
        name: A segmentation network of the zoo.
        count: 5 or 10.

    Returns:
        Sides by names of modules.

    Raises:
        ConfigError: The paper has no such network or number.

    Example:
        >>> paper_patches("pspnet_r18", 5)
        {'decoder.conv.0': 4}
    """
    usual, unusual = _find(_PATCHES, name, count)
    return {layer: unusual.get(layer, usual) for layer in paper_layers(name, count)}


def _find(lists: Mapping[str, Mapping[int, _Entry]], name: str, count: int) -> _Entry:
    if name not in lists:
        raise ConfigError(f"paper_layers: the paper has lists for {', '.join(lists)}, got {name!r}; use last instead")
    if count not in lists[name]:
        raise ConfigError(f"paper_layers: expected 5 or 10, got {count!r}")
    return lists[name][count]
