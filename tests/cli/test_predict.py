"""`tuckprop predict`."""

from pathlib import Path

import pytest

from tuckprop.cli import main
from tuckprop.report.predictions import predictions


def test_it_prints_a_table_for_the_sizes_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sizes = "--batch 128 --channels 64 --height 56 --width 56 --outputs 64 --kernel 3 --ranks 4 8 8 8"
    assert main(["predict", *sizes.split()]) == 0
    printed = capsys.readouterr().out
    assert "128 x 64 x 56 x 56 to 64 x 56 x 56, kernel 3" in printed
    for text in ("3,968", "compression rate R_C", "forward", "weight gradient", "R_S", "SNR, at least", "ε 0.8"):
        assert text in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(["predict", *sizes.split(), "--epsilon", "0.99"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "SNR, at least" in line)
    assert line.split("│")[2:5] == ["       ∞ ", "       100 ", "        25 "]
    assert main(["predict", "--stride", "2", "--kernel", "5", "--dilation", "2", "--groups", "64"]) == 0
    assert "to 64 x 28 x 28, kernel 5, 64 groups" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(predictions))
def test_it_draws_a_figure_to_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["predict", "--figure", name, "--out", str(tmp_path / "new" / "figure.png")]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.suffix for file in files] == [".png", ".pdf", ".svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_a_figure_without_a_file_goes_where_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--figure", "compression"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compression.pdf", "compression.png", "compression.svg"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--figure", "nothing"], "known: compression, speedup"),
        (["--ranks", "4", "8", "8", "57"], "ranks"),
        (["--ranks", "0", "8", "8", "8"], "ranks"),
        (["--height", "0"], "height"),
        (["--kernel", "99", "--padding", "0"], "does not fit"),
        (["--groups", "3"], "groups"),
        (["--epsilon", "0"], "epsilon: expected a share of variance in (0, 1], got 0.0"),
        (["--epsilon", "1.01"], "epsilon"),
        (["--epsilon", "nan"], "epsilon"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_clear_line(capsys: pytest.CaptureFixture[str], options: list[str], text: str) -> None:
    assert main(["predict", *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("tuckprop: ")
    assert error.count("\n") == 1
