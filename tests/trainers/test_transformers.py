"""Hugging Face's Trainer: a converted model trains as by hand, and resumes to the same end."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainers.case import BATCH, RATE, Pictures, assert_same, batches, by_hand, each_codec, network
from tuckprop import HOSVD, WarmState
from tuckprop.codecs import Codec
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # transformers imports it, and it does not import beside every build of torch.
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Classifier(nn.Module):
    """A network that returns its loss, as the Trainer wants it."""

    def __init__(self, codec: Codec | None) -> None:
        super().__init__()
        self.network = network(codec)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class KeepWarm(transformers.TrainerCallback):  # type: ignore[misc]
    """Puts what codecs carry into every checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, model: nn.Module, **rest: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(WarmState(model).state_dict(), folder / "warm.pt")


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*rows, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def trainer(model: nn.Module, folder: Path, steps: int, **settings: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], disable_tqdm=True, remove_unused_columns=False,
        train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    return transformers.Trainer(
        model, arguments, train_dataset=Pictures(12 * BATCH), data_collator=collate, optimizers=(optimizer, None),
        callbacks=[KeepWarm()],
    )  # fmt: skip


@each_codec
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_trains_as_by_hand(tmp_path: Path, codec: Codec, accumulate: int) -> None:
    expected = by_hand(network(codec), batches(9), accumulate)
    model = Classifier(codec)
    steps, settings = 9 // accumulate, {"gradient_accumulation_steps": accumulate, "save_strategy": "no"}
    trainer(model, tmp_path, steps, **settings).train()
    assert_same(model.network.state_dict(), expected)


@each_codec
def test_a_resumed_training_ends_as_one_that_was_not_cut_off(tmp_path: Path, codec: Codec) -> None:
    expected = by_hand(network(codec), batches(12))
    trainer(Classifier(codec), tmp_path, 5, save_steps=5).train()
    model = Classifier(codec)
    WarmState(model).load_state_dict(torch.load(tmp_path / "checkpoint-5" / "warm.pt"))
    trainer(model, tmp_path, 12, save_strategy="no").train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(model.network.state_dict(), expected)


def test_what_it_saves_loads_into_the_plain_network(tmp_path: Path) -> None:
    model = Classifier(HOSVD(0.8))
    trained = trainer(model, tmp_path, 2, save_strategy="no")
    trained.train()
    trained.save_model(str(tmp_path / "saved"))
    plain = Classifier(None)
    plain.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert_same(plain.state_dict(), model.state_dict())
