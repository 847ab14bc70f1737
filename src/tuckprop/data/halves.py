"""The paper's set-up B: one data set in two halves that share few classes, one to pretrain on, one to fine-tune on."""

import torch
from torch import Tensor

from tuckprop.errors import ConfigError

SEED = 233
"""Of the partition. It is no run's seed: fine-tuning must never see images that some other run pretrained on."""

_MOST_SHARDS = 200


def halves(labels: Tensor, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Split images into two non-iid halves by class shards.

    As FedAvg does it (McMahan et al., AISTATS 2017, section 3): sorted by class, cut into equal shards, and half of the
    shards, drawn at random, to each. Shards are FedAvg's 200, or as many as there are classes where that is less (to an
    even number). With ImageNet's classes of unequal sizes about 99 boundaries of shards divide a class between both
    halves, as in Gradient Filter's partition (Yang et al., CVPR 2023), which the paper uses.

    Args:
        labels: Class of each image, int64, [images].
        seed: Decides which shards.

    Returns:
        Indices of each half, int64, sorted; together all, none in both.

    Raises:
        ConfigError: There are fewer than two classes.
    """
    classes = len(labels.unique())
    if classes < 2:
        raise ConfigError(f"half: expected images of at least two classes, got {classes}")
    count = min(_MOST_SHARDS, classes) // 2 * 2
    shards = labels.sort(stable=True).indices.tensor_split(count)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = (
        torch.cat([shards[number] for number in part]).sort().values
        for part in (drawn[: count // 2], drawn[count // 2 :])
    )
    return first, second
