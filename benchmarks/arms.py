"""What the benchmarks compare: networks at their sizes, and ways to train them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tuckprop
from tuckprop.codecs import Codec
from tuckprop.data import load
from tuckprop.zoo import build, load_weights


@dataclass(frozen=True)
class Network:
    """A network as it is benchmarked.

    Attributes:
        name: Name in the zoo.
        batch: Images a step.
        resolution: Pixels a side.
        frozen_statistics: Batch norm in eval mode.
        layout: Memory format of model and images.
        last: Train the last so many convolutions (Linear layers in a transformer) and freeze what comes before; None
            trains all.
    """

    name: str
    batch: int = 32
    resolution: int = 128
    frozen_statistics: bool = False
    layout: torch.memory_format = torch.contiguous_format
    last: int | None = None


# Decides initial weights, the images and their order.
SEED = 0

NETWORKS = {
    "mcunet": Network("mcunet"),
    "mcunet-channels-last": Network("mcunet", layout=torch.channels_last),
    "mobilenetv2": Network("timm:mobilenetv2_100"),
    "mobilenetv2-eval-bn": Network("timm:mobilenetv2_100", frozen_statistics=True),
    "resnet18": Network("timm:resnet18"),
    "resnet34": Network("timm:resnet34"),
    "swin-t": Network("timm:swin_tiny_patch4_window7_224", batch=4, resolution=224),
}


def _plain(model: nn.Module, last: int | None) -> nn.Module:
    if last is not None:
        tuckprop.freeze(model, last=last)
    return model


def _checkpointed(model: nn.Module, last: int | None) -> nn.Module:
    _plain(model, last)
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)
        return model
    for block in model.get_submodule("blocks").children():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model


def _converted(codec: Codec) -> Callable[[nn.Module, int | None], nn.Module]:
    return lambda model, last: tuckprop.convert(model, codec, last=last)


def _captured(prepare: Callable[[nn.Module, int | None], nn.Module]) -> Callable[[nn.Module, int | None], nn.Module]:
    return lambda model, last: tuckprop.capture(prepare(model, last))


def _bfloat16() -> AbstractContextManager[object]:
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)


def _recomputed(codec: Codec) -> Callable[[nn.Module, int | None], nn.Module]:
    return lambda model, last: tuckprop.recompute(model, codec, last=last)


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        prepare: Is done once to the model, which trains its last so many layers, or all.
        around_forward: Is entered around each forward.
        layout: Memory format of model and images, or None for the network's.
    """

    prepare: Callable[[nn.Module, int | None], nn.Module] = _plain
    around_forward: Callable[[], AbstractContextManager[object]] = nullcontext
    layout: torch.memory_format | None = None


METHODS = {
    "plain": Method(),
    "plain-channels-last": Method(layout=torch.channels_last),
    "checkpoint": Method(_checkpointed),
    "bf16": Method(around_forward=_bfloat16),
    "dense": Method(_converted(tuckprop.Dense())),
    "hosvd-0.8": Method(_converted(tuckprop.HOSVD(0.8))),
    "hosvd8-0.9": Method(_converted(tuckprop.HOSVD8(0.9))),
    "deflated-0.95": Method(_converted(tuckprop.DeflatedHOSVD(0.95))),
    "recomputed-0.999": Method(_recomputed(tuckprop.HOSVD8(0.999))),
    "svd-0.8": Method(_converted(tuckprop.SVD(0.8))),
    "asi": Method(_converted(tuckprop.ASI())),
    "subspace-0.8": Method(_converted(tuckprop.Subspace(0.8))),
    "plain-captured": Method(_captured(_plain)),
    "subspace-0.8-captured": Method(_captured(_converted(tuckprop.Subspace(0.8)))),
}


class Training:
    """One network under one method, ready to step.

    Args:
        network: What to train, one of `NETWORKS` or a variant of one.
        method: A key of `METHODS`.
        device: Where to train.
        weights: Weights for MCUNet, or None for random ones.
        bfloat16: Run every method's forward under bfloat16 autocast.
    """

    def __init__(
        self,
        network: Network,
        method: str,
        device: torch.device,
        weights: Path | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        torch.manual_seed(SEED)
        self.network = network
        self.device = device
        model = build(self.network.name, classes=10)
        if weights is not None and network.name == "mcunet":
            load_weights(model, weights)
        model.train()
        if self.network.frozen_statistics:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.method = replace(METHODS[method], around_forward=_bfloat16) if bfloat16 else METHODS[method]
        self.layout = self.method.layout or network.layout
        model.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.model = self.method.prepare(model, network.last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.005)

    def take(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch where and laid out as the method wants it; this is no part of a step."""
        return images.to(self.device, memory_format=self.layout), labels.to(self.device)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run the forward; images [batch, 3, height, width], labels [batch]."""
        with self.method.around_forward():
            return F.cross_entropy(self.model(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one training step."""
        self.loss(images, labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def batches(
    network: Network, data: str, path: Path | None, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `count` batches of real images."""
    images = count * network.batch
    images += -images % 10
    loaded = load(
        data, path, seed=SEED, batch_size=network.batch, resolution=network.resolution, train_size=images, val_size=100
    )
    for number, (x, y) in enumerate(loaded.train.serve(loaded.train.shuffled(SEED, 0))):
        if number < count:
            yield x.to(device), y.to(device)
