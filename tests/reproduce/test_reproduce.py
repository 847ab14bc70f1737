"""Every table and figure has a valid config; runs are skipped, go on and fail one by one."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import tyro

from tests.data.scene_trees import write_voc2012
from tests.report.made import record
from tuckprop.cli import main
from tuckprop.cli._options import to_compression
from tuckprop.cli.spectrum import SpectrumOptions
from tuckprop.cli.train import TrainOptions
from tuckprop.data import datasets
from tuckprop.errors import ConfigError
from tuckprop.report.records import FILE, read_record, write_record
from tuckprop.reproduce import Outcome, Run, carry_out, known, read, runs
from tuckprop.reproduce.config import Scale
from tuckprop.reproduce.runner import finished
from tuckprop.zoo import networks

# The verb of that name hides its module.
MODULE = importlib.import_module("tuckprop.cli.reproduce")
EXPECTED = {
    "fig3a", "fig3b", "fig3c", "fig4", "fig5", "flops", "imagenet", "pretraining", "seeds", "segmentation",
    "segmentation-calibration", "segmentation-calibration-m", "segmentation-pretraining", "table1",
}  # fmt: skip
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
TINY = {"model": "digits_cnn", "data": "digits", "train_size": 32, "val_size": 20, "batch_size": 16, "epochs": 1}

EXAMPLE = """
title = "An example"
paper = "nowhere"
[settings]
data = "digits"
epochs = 3
[axes]
last = [1, 0]
seed = [1, 2]
[[methods]]
codec = "plain"
[[methods]]
codec = "hosvd"
epsilon = 0.8
[small.settings]
epochs = 1
[small.axes]
seed = [1]
"""


def example(tmp_path: Path, text: str = EXAMPLE) -> Path:
    path = tmp_path / "example.toml"
    path.write_text(text)
    return path


def test_every_table_and_figure_has_a_config() -> None:
    assert set(known()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("scale", get_args(Scale))
def test_every_run_is_one_that_train_takes(name: str, scale: Scale) -> None:
    config = read(name, scale)
    for run in runs(config):
        options = tyro.cli(TrainOptions, args=run.arguments(), config=CONFIG)
        assert to_compression(options.compression).last == run.settings.get("last")
        assert options.network.model in networks
        assert options.data.data in datasets
    assert len({run.name for run in runs(config)}) == len(runs(config))


def test_the_grid_is_the_product_of_axes_and_methods(tmp_path: Path) -> None:
    config = read("example", path=example(tmp_path))
    found = runs(config)
    assert len(found) == 2 * 2 * 2
    assert found[0].name == "plain-last1-seed1"
    assert found[1].settings == {
        "data": "digits", "epochs": 3, "last": 1, "seed": 1, "codec": "hosvd", "epsilon": 0.8
    }  # fmt: skip
    assert "last" not in found[-1].settings
    assert found[-1].name == "hosvd-0.8-last0-seed2"
    assert len(runs(config, {"seed": 7, "epochs": 9})) == 2 * 2
    assert runs(config, {"seed": 7})[0].settings["seed"] == 7


@pytest.mark.usefixtures("here")
def test_the_table_of_imagenet_starts_from_what_pretraining_leaves(tmp_path: Path) -> None:
    options = ["--scale", "small", "--out", str(tmp_path)]
    assert main(["reproduce", "pretraining", *options]) == 0
    left = tmp_path / "pretraining" / "small" / "plain-modeldigits_cnn" / "checkpoint.pt"
    assert main(["reproduce", "imagenet", *options, "--only", "plain", "--weights", f"digits_cnn={left}"]) == 0
    (folder,) = (tmp_path / "imagenet" / "small").glob("plain*")
    assert str(left) in read_record(folder).environment["weights"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("model", "calibration"), [("fcn_r18", ""), ("pspnet_m", "-m")])
def test_segmentation_is_pretrained_calibrated_and_fine_tuned(tmp_path: Path, model: str, calibration: str) -> None:
    left: Path | None = None
    for name in ("segmentation-pretraining", f"segmentation-calibration{calibration}", "segmentation"):
        options = [name, "--scale", "small", "--out", str(tmp_path), "--only", "plain", "--set", f"model={model}"]
        assert main(["reproduce", *options, *([] if left is None else ["--weights", f"{model}={left}"])]) == 0
        (folder,) = (tmp_path / name / "small").glob("plain*/")
        assert left is None or str(left) in read_record(folder).environment["weights"]
        left = folder / "checkpoint.pt"


def test_a_list_of_values_is_an_axis(tmp_path: Path) -> None:
    config = read("example", path=example(tmp_path))
    found = runs(config, {"seed": [7, 8, 9], "momentum": [0.0, 0.9]})
    assert len(found) == 2 * 3 * 2 * 2
    assert {run.settings["seed"] for run in found} == {7, 8, 9}
    assert len({run.name for run in found}) == len(found)
    assert found[0].name == "plain-last1-seed7-momentum0.0"


def test_the_small_scale_goes_over_the_papers(tmp_path: Path) -> None:
    config = read("example", "small", path=example(tmp_path))
    assert config.settings == {"data": "digits", "epochs": 1}
    assert config.axes == {"last": [1, 0], "seed": [1]}
    assert len(config.methods) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("epochs = 3", "epoch = 3"), "settings.epoch"),
        (("seed = [1, 2]", "seed = 1"), "axes.seed"),
        (("epsilon = 0.8", "rank = 8"), "'rank'"),
        (('codec = "plain"', 'codec = "vanilla"'), "'vanilla'"),
        (("[settings]", "[setting]"), "'setting'"),
        (('paper = "nowhere"', ""), "'paper'"),
        (("data = ", "last = 2\ndata = "), "last"),
        (('title = "An example"', "title = "), "TOML"),
    ],
)
def test_a_bad_config_says_where(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    path = example(tmp_path, EXAMPLE.replace(*change, 1))
    with pytest.raises(ConfigError, match=r"example\.toml") as raised:
        read("example", path=path)
    assert text in str(raised.value)


def test_an_unknown_id_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="fig5"):
        read("fig99")


def test_finished_runs_are_skipped_and_a_failing_one_keeps_the_others(tmp_path: Path) -> None:
    good, bad = Run("good", TINY | {"codec": "plain"}), Run("bad", TINY | {"codec": "plain", "val_size": 10**6})
    lines: list[str] = []
    outcomes = carry_out([bad, good], tmp_path, lines.append)
    assert [outcome.error is None for outcome in outcomes] == [False, True]
    assert "val_size" in str(outcomes[0].error)
    assert finished(tmp_path / "good", good.settings)
    stamp = (tmp_path / "good" / FILE).stat().st_mtime_ns
    again = carry_out([good], tmp_path, lines.append)
    assert lines[-1] == "run 1 of 1: good is finished"
    assert again[0].error is None
    assert (tmp_path / "good" / FILE).stat().st_mtime_ns == stamp
    assert not finished(tmp_path / "good", good.settings | {"epochs": 2})


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_finished_run_of_other_settings_is_kept(tmp_path: Path, checkpoint: bool) -> None:
    run = Run("run", TINY | {"codec": "plain"})
    carry_out([run], tmp_path, print)
    if not checkpoint:
        (tmp_path / "run" / "checkpoint.pt").unlink()
    before = (tmp_path / "run" / FILE).read_text()
    (outcome,) = carry_out([Run("run", run.settings | {"epochs": 9})], tmp_path, print)
    assert outcome.error is not None
    assert "epochs is 1 there, 9 here" in outcome.error
    assert "--out" in outcome.error
    assert (tmp_path / "run" / FILE).read_text() == before


def test_a_warning_of_a_run_is_told(tmp_path: Path) -> None:
    root = write_voc2012(tmp_path / "data")
    settings = {"model": "fcn_r18", "data": "voc2012", "data_path": root, "resolution": 32, "batch_size": 2}
    settings |= {"steps": 1, "last": 1, "codec": "plain"}
    lines: list[str] = []
    (outcome,) = carry_out([Run("voc", settings)], tmp_path, lines.append)
    assert outcome.error is None
    assert any("VOC12Aug" in line for line in lines)


def test_what_the_parser_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    (outcome,) = carry_out([Run("bad", TINY | {"codec": "plain", "epochs": "many"})], tmp_path, print)
    assert outcome.error is not None
    assert "many" in outcome.error
    assert "\n" not in outcome.error
    assert "─" not in outcome.error


def test_switches_are_passed_only_where_they_differ() -> None:
    settings = {"pretrained": False, "drop_last": False, "freeze_norms": True, "channels_last": True, "codec": "plain"}
    assert Run("switches", settings).arguments() == ["--no-drop-last", "--channels-last", "--codec", "plain"]


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    run = Run("cut", TINY | {"codec": "plain", "epochs": 2})
    carry_out([run], tmp_path, print)
    record = tmp_path / "cut" / FILE
    lines = record.read_text().splitlines()
    record.write_text("\n".join(lines[:-1]) + "\n")  # The measurement at the end is missing.
    assert not finished(tmp_path / "cut", run.settings)
    assert carry_out([run], tmp_path, print)[0].error is None
    kinds = [json.loads(line)["kind"] for line in record.read_text().splitlines()]
    assert kinds == ["run", "epoch", "epoch", "memory"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPECTED)
    assert "…" not in listed
    arguments = ["reproduce", "fig5", "--scale", "small", "--only", "plain", "hosvd", "--out", str(tmp_path)]
    arguments += ["--set", "last=2", "epochs=1", "train_size=32", "val_size=20"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "HOSVD 0.8" in shown
    assert (tmp_path / "fig5" / "small" / "accuracy-memory.png").exists()
    assert main(["reproduce", "fig5", "--set", "epoch=1"]) == 2
    assert "an option of `tuckprop train` (epochs), got 'epoch=1'" in capsys.readouterr().err
    assert main(["reproduce", "fig5", "--set", "foo=1"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("epochs", "train_size", "learning_rate"))
    assert main(["reproduce"]) == 2
    assert "table1" in capsys.readouterr().err
    assert main(["reproduce", "fig5", "--only", "plain", "hosv"]) == 2
    assert "got hosv" in capsys.readouterr().err


def weighted(tmp_path: Path, name: str, *weights: str) -> list[Run]:
    """Return what `reproduce NAME --weights WEIGHTS` would run."""
    found: list[Run] = []

    def note(chosen: list[Run], *_: object) -> list[Outcome]:
        found.extend(chosen)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "carry_out", note)
        assert main(["reproduce", name, "--out", str(tmp_path), "--weights", *weights]) == 0
    return found


def test_each_network_has_weights_of_its_own(tmp_path: Path) -> None:
    for run in weighted(tmp_path, "table1", "mcunet=m.pt", "swin_t=s=1.pt"):
        file = {"mcunet": Path("m.pt"), "swin_t": Path("s=1.pt")}.get(run.settings["model"])
        assert (run.settings.get("weights"), run.settings["pretrained"]) == (file, file is None)
    (tmp_path / "a=b.pt").touch()
    assert {run.settings["weights"] for run in weighted(tmp_path, "fig5", str(tmp_path / "a=b.pt"))} == {
        tmp_path / "a=b.pt"
    }


def test_weights_of_a_network_that_is_not_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "fig5", "--weights", "resnet18=r.pt"]) == 2
    assert "MODEL=FILE with one of mcunet, got 'resnet18=r.pt'" in capsys.readouterr().err


def test_a_figure_of_data_takes_data_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def note(command: list[str]) -> SimpleNamespace:
        called.append(command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(MODULE.subprocess, "run", note)
    given = ["--data-path", "CIFAR", "--weights", "w.pt", "--set", "resolution=128"]
    assert main(["reproduce", "fig4", "--out", str(tmp_path), *given]) == 0
    command, every = called
    assert "--every" in every
    options = tyro.cli(SpectrumOptions, args=command[1:], config=CONFIG)
    assert (options.data.data_path, options.network.weights) == (Path("CIFAR"), Path("w.pt"))
    assert (options.network.pretrained, options.data.resolution, options.layer) == (False, 128, "-4")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("fig3a", ["--data-path", "CIFAR"], "takes no data-path"),
        ("fig3a", ["--only", "hosvd"], "no methods"),
        ("fig4", ["--weights", "a.pt", "b.pt"], "expected one file"),
    ],
)
def test_what_a_figure_does_not_take_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, options: list[str], text: str
) -> None:
    assert main(["reproduce", name, "--out", str(tmp_path), *options]) == 2
    assert text in capsys.readouterr().err


def test_an_id_stands_for_its_runs_of_the_papers_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("plot", "table", "report"):
        assert main([verb, "fig5"]) == 2
        assert "fig5 has not been run" in capsys.readouterr().err
    assert main(["plot", "fig3a"]) == 2
    assert "`tuckprop reproduce fig3a` draws it" in capsys.readouterr().err
    home = tmp_path / "runs" / "reproduce" / "fig5"
    (home / "paper").mkdir(parents=True)  # As where every run fails.
    write_record(record("plain"), home / "small" / "run" / FILE)
    assert main(["report", "fig5"]) == 0
    write_record(record("HOSVD 0.8", data="cifar10"), home / "paper" / "run" / FILE)
    assert main(["table", "fig5", "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "HOSVD 0.8" in shown
    assert "plain" not in shown
    write_record(record("plain", data="cifar100"), home / "paper" / "other" / FILE)
    assert main(["plot", "fig5", "--out", "f.png"]) == 0
    assert sorted(path.name for path in tmp_path.glob("f*.pdf")) == ["f-2.pdf", "f.pdf"]


def test_a_figure_is_drawn(tmp_path: Path) -> None:
    assert main(["reproduce", "fig3a", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "fig3a" / "paper" / "fig3a.png").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_table_and_figure_runs_at_the_small_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["reproduce", name, "--scale", "small", "--out", str(tmp_path)]) == 0, capsys.readouterr()
    folder, config = tmp_path / name / "small", read(name, "small")
    stem = "accuracy-memory" if config.methods else name
    assert all((folder / f"{stem}.{kind}").stat().st_size for kind in ("png", "pdf", "svg"))
    for run in runs(config):
        assert finished(folder / run.name, run.settings)
    if not config.methods:
        return
    shown = capsys.readouterr().out
    assert f"run {len(runs(config))} of {len(runs(config))}" in shown
    assert len(runs(config)) == 1 or " left" in shown
    assert main(["reproduce", name, "--scale", "small", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" is finished") == len(runs(config))
    assert main(["report", str(folder), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert len(page) > 10_000
    # Nothing is loaded from elsewhere.
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(["']?http""", page)
