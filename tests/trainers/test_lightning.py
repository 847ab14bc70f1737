"""Lightning: a converted network inside a LightningModule trains as by hand, and resumes to the same end."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tests.trainers.case import BATCH, RATE, Pictures, assert_same, batches, by_hand, each_codec, network
from tuckprop import WarmState
from tuckprop.codecs import Codec
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # Lightning's metrics import it, and it does not import beside every build of torch.
lightning = pytest.importorskip("lightning")


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A network, its loss and its optimizer; its checkpoints have what codecs carry."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.network = network(codec)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["warm"] = WarmState(self.network).state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        WarmState(self.network).load_state_dict(checkpoint["warm"])


def trainer(folder: Path, **settings: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **settings,
    )  # fmt: skip


def served(start: int, steps: int) -> DataLoader[Any]:
    return DataLoader(Subset(Pictures(steps * BATCH), range(start * BATCH, steps * BATCH)), BATCH)


@each_codec
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.filterwarnings("ignore")
def test_it_trains_as_by_hand(tmp_path: Path, codec: Codec, accumulate: int) -> None:
    expected = by_hand(network(codec), batches(9), accumulate)
    module = Module(codec)
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate).fit(module, served(0, 9))
    assert_same(module.network.state_dict(), expected)


@each_codec
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_ends_as_one_that_was_not_cut_off(tmp_path: Path, codec: Codec) -> None:
    expected = by_hand(network(codec), batches(12))
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Module(codec), served(0, 5))
    first.save_checkpoint(tmp_path / "five.ckpt")
    module = Module(codec)
    trainer(tmp_path, max_epochs=2).fit(module, served(5, 12), ckpt_path=tmp_path / "five.ckpt", weights_only=False)
    assert_same(module.network.state_dict(), expected)
