"""The loop against a training loop written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tuckprop import HOSVD, convert, freeze
from tuckprop.data import Batches
from tuckprop.errors import ConfigError
from tuckprop.train import Schedule, Silent, Step, Trainer

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.arange(40) % 4


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )


def batches(drop_last: bool = True) -> Batches:
    return Batches(IMAGES, LABELS, batch_size=16, resolution=8, drop_last=drop_last)


def test_the_learning_rate_is_torchs_cosine() -> None:
    schedule = Schedule(epochs=7, learning_rate=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], schedule.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs, eta_min=0.005)
    for epoch in range(1, 8):
        assert schedule.rate(epoch - 1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(epochs=90, warmup=4, warmup_share=0.25, learning_rate=0.005, final_share=0.0),
        Schedule(steps=200, warmup=10, warmup_share=0.1, learning_rate=0.01, final_share=0.01),
    ],
    ids=["ImageNet", "segmentation"],
)
def test_a_warm_up_is_torchs_linear_one_before_its_cosine(schedule: Schedule) -> None:
    schedule.check()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], schedule.learning_rate)
    low = schedule.learning_rate * schedule.final_share
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, schedule.warmup_share, total_iters=schedule.warmup),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.length - schedule.warmup, eta_min=low),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [schedule.warmup])
    for done in range(schedule.length):
        assert schedule.rate(done) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def by_hand(model: nn.Module, schedule: Schedule) -> tuple[list[float], list[float]]:
    """Return losses and learning rates by epoch."""
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    losses, rates = [], []
    for epoch in range(schedule.epochs):
        low = schedule.learning_rate * schedule.final_share
        cosine = (1 + math.cos(math.pi * epoch / schedule.epochs)) / 2
        rates.append(low + (schedule.learning_rate - low) * cosine)
        model.train()
        model[1].eval()
        order, total = batches().shuffled(schedule.seed, epoch + 1), 0.0
        for start in (0, 16):
            x = (IMAGES[order[start : start + 16]].float() / 255 - 0.5) / 0.5
            loss = F.cross_entropy(model(x), LABELS[order[start : start + 16]])
            gradients = torch.autograd.grad(loss, parameters)
            norm = torch.sqrt(sum((g**2).sum() for g in gradients))
            scale = min(1.0, schedule.clip / (norm.item() + 1e-6))
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    v.mul_(schedule.momentum).add_(g * scale + schedule.weight_decay * p)
                    p.sub_(rates[-1] * v)
            total += loss.item()
        losses.append(total / 2)
    return losses, rates


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_sgd_as_the_settings_say(momentum: float) -> None:
    schedule = Schedule(epochs=3, learning_rate=0.1, momentum=momentum, weight_decay=0.01, clip=0.5, seed=3)
    model, reference = network(), network()
    trainer = Trainer(model, schedule)
    assert trainer.train(batches(), batches(drop_last=False))
    losses, rates = by_hand(reference, schedule)
    assert_close([e.loss for e in trainer.epochs], losses, rtol=1e-5, atol=1e-6)
    assert_close([e.learning_rate for e in trainer.epochs], rates)
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("every", [None, 1, 3, 4, 100])
def test_a_length_in_steps_sees_the_same_batches_as_one_in_epochs(every: int | None) -> None:
    constant = Schedule(epochs=3, final_share=1.0, momentum=0.9, seed=3)
    models = network(), network()
    Trainer(models[0], constant).train(batches(), batches(drop_last=False))
    trainer = Trainer(models[1], replace(constant, steps=6, validate_every=every))
    spy = Spy()
    trainer.train(batches(), batches(drop_last=False), watch=spy)
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value), name
    lengths = {None: [2, 2, 2], 1: [1] * 6, 3: [3, 3], 4: [4, 2], 100: [6]}[every]
    assert [step.steps for step in spy.steps] == [length for length in lengths for _ in range(length)]
    assert {step.epochs for step in spy.steps} == {len(lengths)}
    assert [epoch.epoch for epoch in trainer.epochs] == list(range(1, len(lengths) + 1))


def test_a_length_in_steps_changes_the_rate_at_every_step() -> None:
    schedule = Schedule(steps=5, warmup=2, final_share=0.0, validate_every=3)
    trainer, rates = Trainer(network(), schedule), []

    class Note(Silent):
        def on_step(self, step: Step) -> None:
            rates.append(trainer._optimizer.param_groups[0]["lr"])

    trainer.train(batches(), batches(), watch=Note())
    assert rates == [schedule.rate(done) for done in range(5)]
    assert rates[2] == schedule.learning_rate
    assert [epoch.learning_rate for epoch in trainer.epochs] == [rates[2], rates[4]]


def test_norms_keep_their_statistics_unless_asked_otherwise() -> None:
    for freeze_norms in (True, False):
        model = network()
        Trainer(model, Schedule(epochs=1, freeze_norms=freeze_norms)).train(batches(), batches())
        assert bool((model[1].running_mean == 0).all()) is freeze_norms
        assert not torch.equal(model[1].weight, torch.ones(4))


def test_frozen_layers_do_not_move() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze(model, last=1)
    Trainer(model, Schedule(epochs=1, freeze_norms=False)).train(batches(), batches())
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["3.weight", "3.bias", "6.weight", "6.bias"]


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected parameters to train"):
        Trainer(network().requires_grad_(False), Schedule())


class Spy(Silent):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_step(self, step: Step) -> None:
        self.steps.append(step)


def test_memory_is_the_papers_count_of_the_named_layers() -> None:
    model, spy = network(), Spy()
    trainer = Trainer(model, Schedule(epochs=2), sites=("0", "3"))
    trainer.train(batches(), batches(drop_last=False), watch=spy)
    expected = 4 * 16 * (8 * 8 + 4 * 6 * 6)
    assert [step.paper_bytes for step in spy.steps] == [expected] * 4
    assert [epoch.paper_bytes for epoch in trainer.epochs] == [expected] * 2
    assert [(step.epoch, step.step, step.steps) for step in spy.steps] == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]


def test_a_converted_network_counts_less_and_learns() -> None:
    model = convert(network(), HOSVD(epsilon=0.8))
    trainer = Trainer(model, Schedule(epochs=8, learning_rate=0.2, momentum=0.9))
    trainer.train(batches(), batches(drop_last=False))
    assert 0 < trainer.epochs[0].paper_bytes < 4 * 16 * (8 * 8 + 4 * 6 * 6)
    assert trainer.epochs[-1].loss < trainer.epochs[0].loss


def test_accuracy_and_loss_are_over_all_images() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return self.bias.expand(len(x), 4)

    labels = torch.tensor([0, 1, 0, 2, 0])
    uneven = Batches(IMAGES[:5], labels, batch_size=2, resolution=8)
    loss, metrics = Trainer(Fixed(), Schedule(epochs=1)).evaluate(uneven)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert loss == pytest.approx(F.cross_entropy(torch.tensor([[2.0, 0, 0, 0]]).expand(5, 4), labels).item())


def test_a_loss_that_is_not_finite_says_so() -> None:
    model = network()
    with torch.no_grad():
        model[6].bias[0] = float("nan")
    with pytest.raises(ConfigError, match=r"epoch 1, step 1.*learning rate"):
        Trainer(model, Schedule(epochs=1)).train(batches(), batches())
