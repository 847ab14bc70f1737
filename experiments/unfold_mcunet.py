"""Write MCUNet's public weights, which have batch norm folded away, as weights with batch norms (zoo/unfold.py).

python experiments/unfold_mcunet.py --data-path CIFAR10 --weights mcunet-in1.safetensors --out mcunet-bn.safetensors
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file

from tuckprop.data import load
from tuckprop.zoo import load_weights
from tuckprop.zoo.mcunet import MCUNet
from tuckprop.zoo.unfold import unfold


@dataclass(frozen=True)
class Options:
    """Where from and where to."""

    weights: Path
    """MCUNet's weights without norms (safetensors)."""
    out: Path
    """File to write (safetensors)."""
    data: str = "cifar10"
    """Data set whose training images give the statistics."""
    data_path: Path | None = None
    """Where it is."""
    resolution: int = 128
    """Pixels a side."""
    images: int = 500
    """So many images."""


def main() -> None:
    """Convert."""
    options = tyro.cli(Options)
    folded = MCUNet(1000, norm=False)
    load_weights(folded, options.weights)
    folded.eval()
    loaded = load(
        options.data,
        options.data_path,
        seed=233,
        batch_size=50,
        resolution=options.resolution,
        train_size=options.images,
        val_size=100,
    )
    images = [batch for batch, _ in loaded.train.serve()]
    network = unfold(folded, images)
    with torch.no_grad():
        expected, found = folded(images[0]), network(images[0])
    error = float((found - expected).norm() / expected.norm())
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, options.out)
    print(f"{options.out}: relative difference of the outputs {error:.1e}")


if __name__ == "__main__":
    main()
