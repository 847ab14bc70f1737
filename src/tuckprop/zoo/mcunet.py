"""MCUNet "5fps" (mcunet-in1), the network of the paper's main experiments: 42 convolutions, then one Linear layer.

Source: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", NeurIPS 2020; the ImageNet model `mcunet-in1`.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from tuckprop.zoo._base import networks


@dataclass(frozen=True)
class BlockSpec:
    """One inverted bottleneck.

    Attributes:
        kernel: Size of the depthwise kernel.
        inputs: Channels in.
        hidden: Channels of the depthwise convolution; where equal to `inputs` there is no expansion.
        outputs: Channels out.
        stride: Of the depthwise convolution.
        residual: Whether the input is added to the output.
    """

    kernel: int
    inputs: int
    hidden: int
    outputs: int
    stride: int = 1
    residual: bool = False


FIRST_CHANNELS = 16
BLOCKS = (
    BlockSpec(3, 16, 16, 8),
    BlockSpec(3, 8, 32, 16, stride=2),
    BlockSpec(3, 16, 48, 16, residual=True),
    BlockSpec(7, 16, 48, 24, stride=2),
    BlockSpec(3, 24, 120, 24, residual=True),
    BlockSpec(3, 24, 120, 40, stride=2),
    BlockSpec(7, 40, 160, 40, residual=True),
    BlockSpec(5, 40, 160, 48),
    BlockSpec(3, 48, 144, 48, residual=True),
    BlockSpec(3, 48, 192, 48, residual=True),
    BlockSpec(7, 48, 240, 96, stride=2),
    BlockSpec(5, 96, 384, 96, residual=True),
    BlockSpec(5, 96, 384, 96, residual=True),
    BlockSpec(3, 96, 576, 160),
)


def _unit(
    name: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, norm: bool, relu: bool
) -> "OrderedDict[str, nn.Module]":
    """Return a convolution and what follows it, by name, in the order they run."""
    unit: OrderedDict[str, nn.Module] = OrderedDict()
    unit[name] = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
    if norm:
        unit[f"{name}_norm"] = nn.BatchNorm2d(outputs)
    if relu:
        unit[f"{name}_relu"] = nn.ReLU6(inplace=True)
    return unit


class Block(nn.Sequential):
    """An inverted bottleneck: expand, depthwise, project."""

    def __init__(self, spec: BlockSpec, *, norm: bool) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.hidden != spec.inputs:
            layers |= _unit("expand", spec.inputs, spec.hidden, 1, norm=norm, relu=True)
        layers |= _unit(
            "depthwise",
            spec.hidden,
            spec.hidden,
            spec.kernel,
            stride=spec.stride,
            groups=spec.hidden,
            norm=norm,
            relu=True,
        )
        layers |= _unit("project", spec.hidden, spec.outputs, 1, norm=norm, relu=False)
        super().__init__(layers)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y if self.residual else y


class MCUNet(nn.Sequential):
    """MCUNet "5fps" for images of any size from 32 x 32; the paper runs it at 224 x 224, its release at 128 x 128.

    Args:
        classes: Outputs of the classifier.
        channels: Channels of the images.
        norm: Batch norm after each convolution, as the network was trained; without it the convolutions have biases,
            as in the public release, where batch norm is folded into the weights.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, *, norm: bool = True) -> None:
        layers: OrderedDict[str, nn.Module] = _unit(
            "first_conv", channels, FIRST_CHANNELS, 3, stride=2, norm=norm, relu=True
        )
        layers["blocks"] = nn.Sequential(*(Block(spec, norm=norm) for spec in BLOCKS))
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["classifier"] = nn.Linear(BLOCKS[-1].outputs, classes)
        super().__init__(layers)


@networks.register("mcunet")
def mcunet(classes: int, channels: int) -> nn.Module:
    """Return MCUNet with batch norm folded away, as its public weights have it."""
    return MCUNet(classes, channels, norm=False)


@networks.register("mcunet_bn")
def mcunet_bn(classes: int, channels: int) -> nn.Module:
    """Return MCUNet with batch norm, as the paper has it."""
    return MCUNet(classes, channels, norm=True)
