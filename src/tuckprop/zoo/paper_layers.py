"""Which layers the paper's code compresses in its segmentation networks, "5 layers" and "10 layers"."""

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


def paper_layers(name: str, count: int) -> tuple[str, ...]:
    """Return the layers that the paper's code compresses, and counts, where it speaks of the last 5 or 10.

    It names more layers than it compresses, except in FCN and in DeepLabV3 and UPerNet at 5: PSPNet has 1 and 5 (6 on
    MobileNetV2), DeepLabV3 9 at 10, UPerNet 8 at 10. The rest of the 5 or 10 it trains uncompressed and uncounted: the
    convolutions after the pools of PSPNet and UPerNet, the shortcut of ResNet's last stage. DeepLabV3 on ResNet18 at
    10 is taken to be as PSPNet there: its list is not known.

    Args:
        name: A segmentation network of the zoo.
        count: 5 or 10.

    Returns:
        Names of modules of that network, in its order.

    Raises:
        ConfigError: The paper has no such network or number.

    `convert(model, dict.fromkeys(paper_layers(name, count), codec), last=k)` trains and compresses likewise, where k
    counts the convolutions from the first that is trained to the classifier: 6 for PSPNet at 5.

    Example:
        >>> paper_layers("pspnet_r18", 5)
        ('decoder.conv.0',)
    """
    if name not in _LAYERS:
        raise ConfigError(f"paper_layers(name=...): expected one of {', '.join(_LAYERS)}, got {name!r}")
    if count not in _LAYERS[name]:
        raise ConfigError(f"paper_layers(count=...): expected 5 or 10, got {count!r}")
    return _LAYERS[name][count]
