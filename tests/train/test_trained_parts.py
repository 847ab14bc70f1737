"""Runs that train the paper's layers of a segmentation network, or modules by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.stopping import after
from tuckprop import HOSVD, GradientFilter, Plan, convert, zoo
from tuckprop.cli import main
from tuckprop.codecs import Codec
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.layers import Twin
from tuckprop.report import read_record
from tuckprop.train import (
    Compression,
    DataSettings,
    Experiment,
    NetworkSettings,
    Prepared,
    Schedule,
    Start,
    compress,
    prepare,
)
from tuckprop.train import run as run_one
from tuckprop.train.loop import Trainer


def paper_run(count: int, codec: Codec | None, **others: Any) -> Experiment:
    return Experiment(
        NetworkSettings("fcn_r18"),
        DataSettings("shapes", resolution=32, train_size=8, val_size=4, batch_size=4),
        Compression(codec, paper_layers=count, **others),
        Schedule(steps=2, validate_every=1),
    )


def build(experiment: Experiment) -> Prepared:
    return prepare(experiment.network, experiment.data, experiment.machine, 1)


@pytest.mark.parametrize("codec", [None, HOSVD()], ids=["plain", "hosvd"])
@pytest.mark.parametrize(("name", "count"), [("fcn_r18", 5), ("deeplabv3_r18", 10), ("upernet_r18", 5)])
def test_the_papers_layers_are_trained_and_counted_and_the_rest_is_frozen(
    name: str, count: int, codec: Codec | None
) -> None:
    experiment = replace(paper_run(count, codec), network=NetworkSettings(name))
    prepared = build(experiment)
    assert compress(prepared, experiment.compression) == zoo.paper_layers(name, count)
    trained = zoo.paper_trained(name, count)
    for parameter, value in prepared.model.named_parameters():
        assert value.requires_grad == any(parameter.startswith(f"{part}.") for part in trained), parameter
    twins = [
        layer
        for layer, module in prepared.model.named_modules()
        if isinstance(module, Twin) and isinstance(module, nn.Conv2d)
    ]
    assert twins == ([] if codec is None else list(zoo.paper_layers(name, count)))
    prepared.model.train()
    images, masks = next(iter(prepared.data.train.serve()))
    prepared.task.loss(prepared.model(images), masks).backward()
    assert all(value.grad is not None for value in prepared.model.parameters() if value.requires_grad)
    assert not prepared.model.get_submodule("encoder.bn1").training


def test_a_run_of_the_papers_layers_resumes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = paper_run(5, HOSVD())
    first = run_one(experiment, tmp_path, stop=after(1))
    assert not first.finished
    with pytest.raises(CheckpointError, match="paper_layers is 5 there, None here"):
        run_one(replace(experiment, compression=Compression(HOSVD())), tmp_path, Start(resume=True))
    record = run_one(experiment, tmp_path, Start(resume=True))
    assert record.finished
    assert record.sites == zoo.paper_layers("fcn_r18", 5)
    assert read_record(tmp_path).settings["paper_layers"] == 5
    assert main(["table", str(tmp_path), "--markdown"]) == 0
    assert "| paper's 5 |" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"last": 2}, {"select": "encoder.*"}])
def test_the_papers_layers_are_given_alone(other: dict[str, Any]) -> None:
    experiment = paper_run(5, HOSVD(), **other)
    with pytest.raises(ConfigError, match=f"paper_layers: expected it alone or {next(iter(other))}"):
        compress(build(experiment), experiment.compression)


@pytest.mark.parametrize("codec", [None, HOSVD()], ids=["plain", "hosvd"])
@pytest.mark.parametrize("freeze_norms", [True, False])
def test_only_the_named_modules_are_trained_and_other_norms_follow_the_data(
    codec: Codec | None, freeze_norms: bool
) -> None:
    names = ("decoder.conv_cat", "classifier")
    experiment = paper_run(5, codec)
    prepared = build(experiment)
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    sites = compress(prepared, Compression(codec, train_only=names))
    assert sites == ("decoder.conv_cat.0", "classifier")
    trainer = Trainer(prepared.model, replace(experiment.schedule, freeze_norms=freeze_norms), task=prepared.task)
    trainer.train(prepared.data.train, prepared.data.val)
    after = prepared.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained = {name for name, _ in prepared.model.named_parameters() if name.startswith(tuple(f"{n}." for n in names))}
    statistics = {name for name, _ in prepared.model.named_buffers()}
    assert moved == trained | (set() if freeze_norms else statistics)


def test_modules_to_train_are_given_alone_and_there(tmp_path: Path) -> None:
    prepared = build(paper_run(5, None))
    for other in ({"last": 2}, {"paper_layers": 5}):
        with pytest.raises(ConfigError, match=f"train_only: expected it alone or {next(iter(other))}"):
            compress(prepared, Compression(None, train_only=("classifier",), **other))
    with pytest.raises(ConfigError, match="such as encoder, decoder, classifier, got 'head'"):
        compress(prepared, Compression(None, train_only=("head",)))
    assert compress(prepared, Compression(None, select="decoder.convs.*", train_only=("decoder",))) == (
        "decoder.convs.0.0", "decoder.convs.1.0"
    )  # fmt: skip


def test_a_run_of_named_modules_resumes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options += ["--model", "fcn_r18", "--train-only", "decoder", "classifier", "--steps", "2", "--out", str(tmp_path)]
    assert main(["train", *options]) == 0
    assert main(["train", *options, "--resume"]) == 0
    assert main(["table", str(tmp_path), "--markdown"]) == 0
    assert "| decoder, classifier |" in capsys.readouterr().out
    assert main(["train", *options, "--train-only", "classifier", "--resume"]) == 2
    assert "train_only is" in capsys.readouterr().err


def test_gradient_filter_has_the_published_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = paper_run(5, GradientFilter(), paper_patches=True)
    prepared = build(replace(experiment, network=NetworkSettings("deeplabv3_r18")))
    compress(prepared, experiment.compression)
    patches = {
        name: module._site.codec.patch
        for name, module in prepared.model.named_modules()
        if isinstance(module, Twin) and isinstance(module, nn.Conv2d)
    }
    assert list(patches.values()) == [3, 3, 6, 9, 3]
    assert patches == zoo.paper_patches("deeplabv3_r18", 5)
    record = run_one(experiment, tmp_path)
    assert record.method == "Gradient Filter, patches by layer"
    # 5 layers of FCN with patches of 4 on maps of 4 x 4: one sum a channel.
    assert record.epochs[-1].paper_bytes == 4 * experiment.data.batch_size * (512 + 512 + 512 + 128 + 640)
    options = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options += ["--model", "deeplabv3_r18", "--codec", "gradient_filter", "--paper-layers", "5", "--paper-patches"]
    assert main(["plan", *options, "--save", str(tmp_path / "plan.json")]) == 0
    made = Plan.from_json((tmp_path / "plan.json").read_text())
    assert [site.codec for site in made.sites if site.kind == "Conv2d"] == [GradientFilter(p) for p in (3, 3, 6, 9, 3)]


@pytest.mark.parametrize(
    ("codec", "count"), [(HOSVD(), 5), (None, 5), (GradientFilter(), None)], ids=["hosvd", "plain", "no layers"]
)
def test_published_patches_are_gradient_filters_and_of_the_papers_layers(
    codec: Codec | None, count: int | None
) -> None:
    settings = Compression(codec, paper_layers=count, paper_patches=True)
    with pytest.raises(ConfigError, match="paper_patches: expected codec gradient_filter and paper_layers 5 or 10"):
        compress(build(paper_run(5, HOSVD())), settings)


def test_plan_and_measure_take_the_papers_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "shapes", "--resolution", "32", "--train-size", "4", "--val-size", "2", "--batch-size", "2"]
    options = [*data, "--model", "pspnet_r18", "--codec", "hosvd", "--paper-layers", "5"]
    assert main(["plan", *options, "--save", str(tmp_path / "plan.json")]) == 0
    made = Plan.from_json((tmp_path / "plan.json").read_text())
    assert [site.name for site in made.sites if site.kind == "Conv2d"] == ["decoder.conv.0"]
    model = convert(zoo.build("pspnet_r18", 3), made)
    trained = {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"decoder", "classifier"}
    assert main(["measure", *options]) == 0
    assert "decoder.conv.0" in capsys.readouterr().out
    assert main(["plan", *data, "--model", "mcunet", "--paper-layers", "5"]) == 2
    assert "fcn_r18" in capsys.readouterr().err
