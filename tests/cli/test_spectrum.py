"""`tuckprop spectrum`."""

from pathlib import Path

import pytest

from tuckprop.cli import main

SMALL = ["--train-size", "60", "--val-size", "20", "--batch-size", "12", "--threads", "1"]


@pytest.mark.parametrize(("layer", "name", "size"), [("-4", "0", "1"), ("-1", "7", "64"), ("5", "5", "32")])
def test_it_prints_a_table_and_writes_three_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: str, name: str, size: str
) -> None:
    out = tmp_path / "figure.pdf"
    assert main(["spectrum", *SMALL, "--layer", layer, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"digits_cnn on digits, input of layer {name}" in printed
    channels = next(line for line in printed.splitlines() if "channels" in line)
    assert channels.split("│")[3].strip() == size
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pdf", ".png", ".svg"]


def test_every_layer_has_files_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectrum", *SMALL, "--every", "--out", str(tmp_path / "all.png")]) == 0
    layers = ("0", "2", "5", "7", "11")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"all-{n}.{kind}" for n in layers for kind in ("png", "pdf", "svg")
    }
    printed = capsys.readouterr().out
    assert all(f"input of layer {name} " in printed for name in layers)


def test_every_layers_files_keep_a_name_with_dots(tmp_path: Path) -> None:
    assert main(["spectrum", *SMALL, "--every", "--out", str(tmp_path / "all.v2.png")]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {f"all.v2-{n}" for n in ("0", "2", "5", "7", "11")}


def test_an_unknown_suffix_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectrum", *SMALL, "--every", "--out", str(tmp_path / "all.xyz")]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "got .xyz" in error


def test_modes_and_threshold_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--modes", "1", "2", "--epsilon", "0.9", "--layer", "2", "--out", str(tmp_path / "f")]
    assert main(["spectrum", *SMALL, *options]) == 0
    printed = capsys.readouterr().out
    assert "components for 0.9" in printed
    assert "channels" in printed
    assert "height" not in printed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--layer", "nothing"], "--layer: expected a layer's name or a place such as -4, got 'nothing'"),
        (["--layer", "0.5"], "--layer"),
        (["--layer", "-9"], "the model has no 9 such layers"),
        (["--modes", "5"], "modes 1 to 4"),
        (["--epsilon", "2"], "epsilon"),
        (["--model", "nothing"], "known"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert main(["spectrum", *SMALL, "--out", str(tmp_path / "f"), *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("tuckprop: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_papers_layer_of_mcunet_needs_few_components(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_data: Path
) -> None:
    """Nguyen et al., NeurIPS 2024, Fig. 4: under 20% of batch and channel components explain over 80%."""
    options = [
        "--model", "mcunet", "--weights", str(shared_data / "mcunet-in1" / "model.safetensors"), "--data", "cifar10",
        "--data-path", str(shared_data / "cifar10"), "--resolution", "96", "--train-size", "100", "--val-size", "10",
        "--batch-size", "32", "--modes", "1", "2", "--out", str(tmp_path / "f"),
    ]  # fmt: skip
    assert main(["spectrum", *options]) == 0
    printed = capsys.readouterr().out
    assert "input of layer blocks.12.project" in printed
    shares = [float(line.split("│")[5]) for line in printed.splitlines() if line.startswith("│")]
    assert len(shares) == 2
    assert all(0 < share < 20 for share in shares)
