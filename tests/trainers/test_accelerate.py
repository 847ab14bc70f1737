"""Hugging Face accelerate: a converted model trains as by hand, in half precision too, and resumes to the same end."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainers.case import RATE, assert_same, batches, by_hand, each_codec, network
from tuckprop import HOSVD, WarmState, measure
from tuckprop.codecs import Codec
from tuckprop.layers import Twin

accelerate = pytest.importorskip("accelerate")


class Training:
    """A model and an optimizer in the hands of an Accelerator of their own."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, **settings)
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(WarmState(model))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels)

    def take(self, given: list[tuple[Tensor, Tensor]]) -> None:
        for images, labels in given:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.loss(images, labels))
                self.optimizer.step()
                self.optimizer.zero_grad()


@each_codec
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_trains_as_by_hand(codec: Codec, accumulate: int) -> None:
    expected = by_hand(network(codec), batches(9), accumulate)
    model = network(codec)
    Training(model, gradient_accumulation_steps=accumulate).take(batches(9))
    assert_same(model.state_dict(), expected)


def test_under_bfloat16_it_learns_and_holds_less() -> None:
    given, held = batches(30), []
    for codec in (None, HOSVD(0.8)):
        model = network(codec)
        training = Training(model, mixed_precision="bf16")
        before = float(training.loss(*given[0]).detach())
        held.append(measure(model, lambda m, training=training: training.loss(*given[0])).held_bytes)
        training.take(given)
        assert float(training.loss(*given[0]).detach()) < 0.8 * before
    assert held[1] < 0.6 * held[0]


@each_codec
def test_a_resumed_training_ends_as_one_that_was_not_cut_off(tmp_path: Path, codec: Codec) -> None:
    expected = by_hand(network(codec), batches(12))
    first = Training(network(codec))
    first.take(batches(12)[:5])
    first.accelerator.save_state(str(tmp_path))
    model = network(codec)
    second = Training(model)
    second.accelerator.load_state(str(tmp_path))
    second.take(batches(12)[5:])
    assert_same(model.state_dict(), expected)


def test_what_it_saves_loads_into_the_plain_network(tmp_path: Path) -> None:
    model = network(HOSVD(0.8))
    training = Training(model)
    training.take(batches(2))
    training.accelerator.save_model(training.model, str(tmp_path))
    plain = network(None)
    accelerate.load_checkpoint_in_model(plain, str(tmp_path))
    assert not any(isinstance(module, Twin) for module in plain.modules())
    assert_same(plain.state_dict(), model.state_dict())
