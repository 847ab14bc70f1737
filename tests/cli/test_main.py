"""The command line, called as a user calls it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from tuckprop import __version__
from tuckprop.cli import main
from tuckprop.codecs import codecs
from tuckprop.report import read_record

SMALL = ["--train-size", "64", "--val-size", "40", "--batch-size", "16", "--epochs", "1", "--threads", "1"]


def train(out: Path, *more: str) -> int:
    return main(["train", *SMALL, "--out", str(out), *more])


def test_training_with_no_more_than_defaults_leaves_a_record_and_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run") == 0
    record = read_record(tmp_path / "run")
    assert (record.settings["data"], record.settings["model"], record.method) == ("digits", "digits_cnn", "plain")
    assert record.settings["learning_rate"] == 0.05
    printed = capsys.readouterr().out
    assert printed.startswith(f"plain -> {tmp_path}")
    assert re.search(r"epoch 1/1 .*  paper's count [0-9.]+ [KM]iB ", printed)
    assert "digits, digits_cnn" in printed


def test_options_reach_the_run(tmp_path: Path) -> None:
    options = [
        "--codec",
        "hosvd",
        "--epsilon",
        "0.7",
        "--last",
        "2",
        "--no-pointwise",
        "--learning-rate",
        "0.01",
        "--seed",
        "9",
    ]
    assert train(tmp_path / "run", *options) == 0
    settings = read_record(tmp_path / "run").settings
    assert settings["codec"] == "hosvd"
    assert settings["codec_settings"] == {"epsilon": 0.7}
    assert (settings["last"], settings["pointwise"], settings["learning_rate"], settings["seed"]) == (2, False, 0.01, 9)


def test_runs_without_out_go_where_their_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--codec", "svd"], ["--codec", "svd", "--epsilon", "0.9"], ["--seed", "2"], ["--last", "1"]):
        assert main(["train", *SMALL, *options]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 5


def test_every_setting_of_every_codec_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in codecs:
        assert name in text
        for setting in fields(codecs[name]):
            assert f"--{setting.name.replace('_', '-')} " in text


@pytest.mark.parametrize("name", list(codecs))
def test_every_codec_trains_from_the_command_line(tmp_path: Path, name: str) -> None:
    assert train(tmp_path / "run", "--codec", name) == 0
    assert read_record(tmp_path / "run").settings["codec"] == name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--codec", "zip"], "hosvd"),
        (["--codec", "hosvd", "--epsilon", "0"], "epsilon"),
        (["--codec", "hosvd", "--epsilon", "1.5"], "1.5"),
        (["--codec", "svd", "--epsilon", "nan"], "nan"),
        (["--codec", "hosvd", "--patch", "2"], "--patch: codec hosvd does not have it; it takes --epsilon"),
        (["--epsilon", "0.8"], "codec plain does not have it; it takes no settings"),
        (["--codec", "gradient_filter", "--patch", "0"], "patch"),
        (["--last", "0"], "1 to 4"),
        (["--last", "99"], "1 to 4"),
        (["--codec", "hosvd", "--select", "nothing*"], "picks no"),
        (["--model", "nothing"], "known"),
        (["--model", "resnet18"], "3 channels"),
        (["--data", "nothing"], "known"),
        (["--data", "cifar10", "--data-path", "absent"], "cifar-10-python.tar.gz"),
        (["--weights", "absent.pt"], "there is none"),
        (["--train-size", "100000"], "train_size"),
        (["--batch-size", "65"], "batch_size"),
        (["--resolution", "0"], "resolution"),
        (["--epochs", "0"], "epochs"),
        (["--momentum", "1.5"], "momentum: expected less than 1, got 1.5"),
        (["--device", "abacus"], "device"),
        (["--threads", "0"], "threads"),
        (["--resume"], "there is none; start without --resume"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert train(tmp_path / "run", *options) == 2
    printed, error = capsys.readouterr()
    assert text in error
    assert error.startswith("tuckprop: ")
    assert error.count("\n") == 1
    # Nothing is said of a run that there is not, and nothing left.
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_a_folder_that_was_there_and_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train(tmp_path / "run", "--model", "nothing") == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert train(tmp_path / "run" / "kept") == 0
    assert train(tmp_path / "run", "--model", "nothing") == 2
    assert read_record(tmp_path / "run" / "kept").finished


def test_a_run_that_is_there_is_refused_with_all_ways_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    capsys.readouterr()
    assert train(tmp_path) == 2
    error = capsys.readouterr().err
    assert all(option in error for option in ("--resume", "--overwrite", "--out"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tuckprop {__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--version" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run") == 0
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK nonsense")
    capsys.readouterr()
    assert train(tmp_path / "run", "--resume") == 2
    error = capsys.readouterr().err
    assert "checkpoint.pt is damaged" in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_clear_line_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert train(out) == 2
        shown, error = capsys.readouterr()
        assert "epoch" not in shown
        assert error.startswith(f"tuckprop: out: expected a folder that can be made and written to, got {out} (")
        assert error.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt.tmp").symlink_to("/dev/full")
    capsys.readouterr()
    assert train(tmp_path, "--overwrite") == 2
    error = capsys.readouterr().err
    full = tmp_path / "checkpoint.pt"
    assert error.startswith(f"tuckprop: [Errno 28] No space left on device: '{full}'; what was saved before is kept")
    assert error.count("\n") == 1
    assert full.read_bytes() == before
    assert not (tmp_path / "checkpoint.pt.tmp").is_symlink()


def test_interrupting_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tuckprop.cli", "train", "--threads", "1", "--batch-size", "16", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--epochs", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        for _ in range(1200):
            if (out / "checkpoint.pt").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "--resume" in printed
    done = len(read_record(out).epochs)
    assert 1 <= done < 1000
    # Another length is another run; the same one goes on.
    assert subprocess.run([*command, "--epochs", "1001", "--resume"], capture_output=True).returncode == 2


def test_plan_prints_sites_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    options = ["--batch-size", "16", "--codec", "hosvd", "--epsilon", "0.8", "--last", "2", "--save", str(path)]
    assert main(["plan", *options]) == 0
    printed = capsys.readouterr().out
    assert "16x64x4x4" in printed
    names = [site["name"] for site in json.loads(path.read_text())["sites"]]
    assert {"5", "7"} <= set(names)
    assert "0" not in names
    assert main(["plan", "--codec", "plain"]) == 2
    assert main(["plan", "--codec", "hosvd", "--recompute"]) == 2


@pytest.mark.parametrize("codec", [[], ["--codec", "hosvd"]])
def test_measure_prints_bytes_by_layer(capsys: pytest.CaptureFixture[str], codec: list[str]) -> None:
    assert main(["measure", "--batch-size", "16", *codec]) == 0
    assert "held for backward" in capsys.readouterr().out


def test_table_and_plot_read_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "runs" / "a") == 0
    assert train(tmp_path / "runs" / "b", "--codec", "hosvd") == 0
    capsys.readouterr()
    assert main(["table", str(tmp_path / "runs"), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == ["plain", "HOSVD 0.8"]
    assert main(["plot", str(tmp_path / "runs"), "--out", str(tmp_path / "p.png"), "--memory", "paper"]) == 0
    assert all((tmp_path / f"p.{suffix}").stat().st_size > 1000 for suffix in ("png", "pdf", "svg"))
    assert main(["plot", str(tmp_path / "runs"), "--memory", "imagined"]) == 2
    assert main(["plot", str(tmp_path / "runs"), "--out", str(tmp_path / "q.xyz")]) == 2
    assert "expected a name without suffix, or with one of .png, .pdf, .svg" in capsys.readouterr().err
    assert not list(tmp_path.glob("q*"))
    assert main(["table", str(tmp_path / "absent")]) == 2
    assert main(["table"]) == 2


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_plot_of_every_method(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuckprop.cli", "demo", "--epochs", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last_table = done.stdout.rpartition("digits, digits_cnn")[2]
    for method in ("plain", "HOSVD 0.8", "SVD 0.8", "Gradient"):
        assert method in last_table
    assert (tmp_path / "accuracy-memory.png").stat().st_size > 1000


def test_mcunet_trains_on_cifar10_from_its_weights(tmp_path: Path, shared_data: Path) -> None:
    options = [
        "--model", "mcunet", "--weights", str(shared_data / "mcunet-in1" / "model.safetensors"), "--data", "cifar10",
        "--data-path", str(shared_data / "cifar10"), "--resolution", "64", "--codec", "hosvd", "--epsilon", "0.8",
        "--last", "4",
    ]  # fmt: skip
    assert train(tmp_path / "run", *options, "--train-size", "320", "--epochs", "2") == 0
    record = read_record(tmp_path / "run")
    assert record.sites == ("blocks.12.project", "blocks.13.expand", "blocks.13.depthwise", "blocks.13.project")
    assert "fresh: classifier.weight, classifier.bias" in record.environment["weights"]
    assert record.last_accuracy > 0.2
