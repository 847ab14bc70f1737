"""Every table and figure has a valid config; runs are skipped, go on and fail one by one."""

import json
from pathlib import Path
from typing import get_args

import pytest
import tyro

from tuckprop.cli import main
from tuckprop.cli._options import to_compression
from tuckprop.cli.train import TrainOptions
from tuckprop.data import datasets
from tuckprop.errors import ConfigError
from tuckprop.report.records import FILE
from tuckprop.reproduce import Run, carry_out, known, read, runs
from tuckprop.reproduce.config import Scale
from tuckprop.reproduce.runner import finished
from tuckprop.zoo import networks

EXPECTED = {"fig3a", "fig3b", "fig3c", "fig4", "fig5", "flops", "imagenet", "seeds", "segmentation", "table1"}
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
    arguments = ["reproduce", "fig5", "--scale", "small", "--only", "plain", "hosvd", "--out", str(tmp_path)]
    arguments += ["--set", "last=2", "epochs=1", "train_size=32", "val_size=20"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "HOSVD 0.8" in shown
    assert (tmp_path / "fig5" / "small" / "accuracy-memory.png").exists()
    assert main(["reproduce", "fig5", "--set", "epoch=1"]) == 2
    assert "epoch=1" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "table1" in capsys.readouterr().err


def test_a_figure_is_drawn(tmp_path: Path) -> None:
    assert main(["reproduce", "fig3a", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "fig3a" / "paper" / "fig3a.png").exists()
