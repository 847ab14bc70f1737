"""Whole runs: what they leave behind, and that stopping and resuming changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.train.stopping import after
from tuckprop import ASI, HOSVD, HOSVD8, GradientFilter, Subspace, zoo
from tuckprop.codecs import Codec, codecs
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.report import read_record
from tuckprop.train import Compression, DataSettings, Experiment, NetworkSettings, Schedule, Start, run

DATA = DataSettings(train_size=64, val_size=40, batch_size=16)
SHORT = Experiment(data=DATA, schedule=Schedule(epochs=4, momentum=0.9, seed=5))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["model"]


def timeless(folder: Path) -> list[object]:
    """Return the record's epochs without their durations."""
    return [replace(epoch, seconds=0.0, step_seconds=0.0) for epoch in read_record(folder).epochs]


def with_dropout(classes: int, channels: int) -> nn.Module:
    plain = zoo.networks["digits_cnn"](classes, channels)
    return nn.Sequential(*list(plain)[:-1], nn.Dropout(0.3), plain[-1])


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the zoo know a network whose training draws random numbers."""
    monkeypatch.setitem(zoo.networks._entries, "dropout", with_dropout)


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize("codec", [None, *(codecs[name]() for name in codecs)], ids=repr)
@pytest.mark.parametrize("steps", [8, 10])
def test_a_run_that_is_stopped_and_resumed_ends_bit_for_bit_as_one_that_is_not(
    tmp_path: Path, codec: Codec | None, steps: int
) -> None:
    # 4 steps an epoch: one stop between epochs, one inside an epoch.
    experiment = replace(SHORT, network=NetworkSettings("dropout"), compression=Compression(codec))
    whole = run(experiment, tmp_path / "whole")
    first = run(experiment, tmp_path / "parts", stop=after(steps))
    assert not first.finished
    torch.manual_seed(12345)
    resumed = run(experiment, tmp_path / "parts", Start(resume=True))
    assert resumed.finished
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "parts")[name], value), name
    assert whole.memory is not None
    assert resumed.memory is not None
    assert resumed.memory.held_bytes == whole.memory.held_bytes


def test_stopping_at_every_step_changes_nothing_either(tmp_path: Path) -> None:
    experiment = replace(SHORT, schedule=replace(SHORT.schedule, epochs=2))
    run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "parts", stop=after(1))
    for _ in range(20):
        if run(experiment, tmp_path / "parts", Start(resume=True), stop=after(1)).finished:
            break
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 3])
def test_stopping_within_passes_and_validations_changes_nothing_either(tmp_path: Path, count: int) -> None:
    # 4 steps a pass: validations fall within passes.
    schedule = Schedule(steps=10, validate_every=3, warmup=4, momentum=0.9, seed=5)
    experiment = replace(SHORT, schedule=schedule)
    run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "parts", stop=after(count))
    for _ in range(20):
        if run(experiment, tmp_path / "parts", Start(resume=True), stop=after(count)).finished:
            break
    assert len(timeless(tmp_path / "whole")) == 4
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "parts")[name], value), name


def test_the_record_says_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    compression = Compression(HOSVD(epsilon=0.7), last=2)
    returned = run(replace(SHORT, compression=compression), tmp_path)
    record = read_record(tmp_path)
    assert record == returned
    assert record.method == "HOSVD 0.7"
    assert record.settings.items() >= {
        "model": "digits_cnn", "data": "digits", "codec": "hosvd", "codec_settings": {"epsilon": 0.7}, "last": 2,
        "epochs": 4, "seed": 5, "train_size": 64, "learning_rate": 0.05,
    }.items()  # fmt: skip
    assert record.environment["torch"] == torch.__version__
    assert record.sites == ("5", "7")
    assert len(record.epochs) == 4
    assert record.memory is not None
    plain = 4 * 16 * (32 * 4 * 4 + 64 * 4 * 4)
    assert 0 < record.peak_paper_bytes < plain
    assert record.memory.held_bytes > 0
    assert record.memory.process_peak_bytes >= record.memory.process_start_bytes > 2**20


def test_methods_start_from_the_same_weights_and_see_the_same_images(tmp_path: Path) -> None:
    # The forward is exact, so the first step's loss is the same whatever is compressed.
    one_step = replace(SHORT, data=replace(DATA, train_size=16), schedule=Schedule(epochs=1))
    losses = {run(replace(one_step, compression=Compression(codec)), tmp_path / str(codec)).epochs[0].loss
              for codec in (None, HOSVD(), GradientFilter(2))}  # fmt: skip
    assert len(losses) == 1


def test_finished_runs_are_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    experiment = replace(SHORT, schedule=replace(SHORT.schedule, epochs=1))
    first = run(experiment, tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run already: pass --resume .*, --overwrite .*--out"):
        run(experiment, tmp_path)
    assert run(experiment, tmp_path, Start(resume=True)) == first
    assert run(experiment, tmp_path, Start(overwrite=True)).epochs[0].loss == first.epochs[0].loss


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def never() -> bool:
        raise AssertionError("a step was taken")

    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="out: expected a folder that can be made and written to"):
            run(SHORT, out, stop=never)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(SHORT, tmp_path, stop=after(1))
    with pytest.raises(CheckpointError, match=r"codec is 'plain' there, 'hosvd' here"):
        run(replace(SHORT, compression=Compression(HOSVD())), tmp_path, Start(resume=True))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 0}, "epochs"), ({"learning_rate": 0.0}, "learning_rate"), ({"clip": float("nan")}, "clip"),
        ({"clip": -1.0}, "clip"), ({"momentum": -0.1}, "momentum"), ({"momentum": 1.0}, "momentum"),
        ({"momentum": float("nan")}, "momentum"), ({"seed": -1}, "seed"),
        ({"steps": 0}, "steps"), ({"validate_every": 2}, "validate_every"), ({"warmup": 4, "epochs": 4}, "4 epochs"),
        ({"steps": 9, "validate_every": 0}, "validate_every"), ({"warmup": 9, "steps": 9}, "9 steps"),
        ({"warmup": -1}, "warmup"), ({"warmup_share": -0.5}, "warmup_share"),
    ],
)  # fmt: skip
def test_schedules_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run(replace(SHORT, schedule=Schedule(**change)), tmp_path)


@pytest.mark.parametrize("last", [0, 5, -1])
@pytest.mark.parametrize("codec", [None, HOSVD()], ids=repr)
def test_depths_that_are_not_there_are_refused(tmp_path: Path, codec: Codec | None, last: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 4"):
        run(replace(SHORT, compression=Compression(codec, last=last)), tmp_path)


@pytest.mark.parametrize(
    ("codec", "name"),
    [(None, "plain"), (HOSVD(0.9), "HOSVD 0.9"), (GradientFilter(7), "Gradient Filter 7"),
     (Subspace(0.8, horizon=7), "Subspace 0.8, horizon 7"), (ASI((1, 2)), "ASI (1, 2)")],
)  # fmt: skip
def test_methods_have_short_names(codec: Codec | None, name: str) -> None:
    assert Experiment(compression=Compression(codec)).method() == name


def test_blocks_that_are_computed_again(tmp_path: Path) -> None:
    network = NetworkSettings("timm:resnet18")
    data = DataSettings(train_size=64, val_size=20, batch_size=16, resolution=32)
    settings = replace(SHORT, network=network, data=data, schedule=Schedule(epochs=1))
    again = replace(settings, compression=Compression(codec=HOSVD8(0.99), last=4, recompute=True))
    record = run(again, tmp_path / "again")
    assert record.method == "recomputed HOSVD8 0.99"
    assert record.sites == ("layer4.0", "layer4.1")
    converted = run(replace(settings, compression=Compression(codec=HOSVD8(0.99), last=4)), tmp_path / "converted")
    assert record.memory is not None
    assert converted.memory is not None
    assert record.memory.held_bytes < converted.memory.held_bytes
    assert record.memory.paper_bytes < converted.memory.paper_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Compression(recompute=True), "expected a codec for the blocks' inputs, got plain"),
        (Compression(HOSVD(), recompute=True, budget="1MB"), "expected it without budget, got budget '1MB'"),
        (Compression(HOSVD(), recompute=True, select="*"), "expected it without select"),
        (Compression(HOSVD(), recompute=True, pointwise=False), "expected it without pointwise"),
        (Compression(HOSVD(), recompute=True, train_only=("5",)), "expected it without train_only"),
    ],
)
def test_what_cannot_be_computed_again(tmp_path: Path, settings: Compression, message: str) -> None:
    with pytest.raises(ConfigError, match=f"recompute: {message}"):
        run(replace(SHORT, compression=settings), tmp_path / "run")


def test_a_byte_budget_is_met(tmp_path: Path) -> None:
    record = run(replace(SHORT, compression=Compression(codec=Subspace(), budget="200KB")), tmp_path / "run")
    assert record.method == "Subspace, budget 200KB"
    assert record.memory is not None
    assert record.memory.held_bytes == pytest.approx(200_000, rel=0.15)


def test_a_budget_needs_a_codec(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget"):
        run(replace(SHORT, compression=Compression(budget="1MB")), tmp_path / "run")
