"""What single configs are to hold."""

from pathlib import Path

import pytest
import tyro

from tests.report.made import segmentation
from tuckprop.cli import main
from tuckprop.cli.spectrum import SpectrumOptions
from tuckprop.report import plot, read_record, summarise
from tuckprop.reproduce import Run, carry_out, read, runs
from tuckprop.reproduce.config import folder

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
TINY = {"data": "digits", "pretrained": False, "epochs": 1, "train_size": 32, "val_size": 20, "batch_size": 16}


def test_segmentation_has_three_seeds_which_become_one_row() -> None:
    made = runs(read("segmentation"))
    assert len(made) == 6 * 2 * 6 * 3
    assert {run.settings["seed"] for run in made} == {233, 234, 235}
    assert {run.settings["seed"] for run in runs(read("segmentation", "small"))} == {233}
    settings = [dict(run.settings) for run in made if run.name.startswith("plain-modelfcn_r18-paperlayers5-")]
    assert len(settings) == 3
    values = zip(settings, ((0.5,), (0.6,), (0.7,)), strict=True)
    (row,) = summarise(segmentation(**chosen, accuracies=value, paper=(1.0,)) for chosen, value in values)
    assert (row.runs, row.best_accuracy.mean) == (3, pytest.approx(0.6))
    assert row.best_accuracy.sd == pytest.approx(0.1)
    (axes,) = plot([row]).axes
    (bar,) = axes.containers
    ((low, high),) = bar.lines[2][1].get_segments()
    assert (low[1], high[1]) == (pytest.approx(50), pytest.approx(70))


@pytest.mark.parametrize("name", ["segmentation", "seeds", "segmentation-calibration", "segmentation-calibration-m"])
def test_segmentations_configs_say_how_images_are_shown(name: str) -> None:
    text = (folder() / f"{name}.toml").read_text(encoding="utf-8")
    assert "squeezed whole to 512 x 512, without augmentation" in text


def test_figure_five_has_the_recomputed_codec_and_takes_the_network_with_batch_norms(tmp_path: Path) -> None:
    (run,) = (r for r in runs(read("fig5"), TINY | {"last": 2, "model": "mcunet_bn"}) if r.method == "hosvd8")
    assert run.name == "hosvd8-0.999-recompute"
    assert "--recompute" in run.arguments()
    (outcome,) = carry_out([run], tmp_path, print)
    assert outcome.error is None
    made = read_record(outcome.folder)
    assert made.method == "recomputed HOSVD8 0.999"
    assert (made.settings["model"], made.finished) == ("mcunet_bn", True)


def test_the_network_with_batch_norms_runs_at_the_small_scale(tmp_path: Path) -> None:
    options = ["--scale", "small", "--only", "hosvd", "--out", str(tmp_path)]
    options += ["--set", "model=mcunet_bn", "last=2", "epochs=1", "train_size=32", "val_size=20"]
    for name in ("fig5", "table1"):
        assert main(["reproduce", name, *options]) == 0
        made = [read_record(path) for path in (tmp_path / name / "small").glob("hosvd*")]
        assert made
        assert all(entry.settings["model"] == "mcunet_bn" for entry in made)


def test_the_last_model_that_is_named_is_drawn() -> None:
    for arguments in read("fig4").commands:
        given = [*arguments[1:], *Run("fig4", {"model": "mcunet_bn"}).arguments()]
        assert tyro.cli(SpectrumOptions, args=given, config=CONFIG).network.model == "mcunet_bn"


def test_networks_of_table_one_can_be_chosen() -> None:
    made = runs(read("table1"), {"model": ["mcunet_bn", "resnet18"]})
    assert {run.settings["model"] for run in made} == {"mcunet_bn", "resnet18"}
