"""What the help says of switches, and that both of their names are taken."""

import re

import pytest

from tuckprop.cli import main
from tuckprop.cli.train import Output
from tuckprop.train import Compression, DataSettings, Schedule

ON = {"drop-last": DataSettings, "pointwise": Compression, "freeze-norms": Schedule, "table": Output}


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    # Without the frames and line breaks of the terminal.
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


@pytest.mark.parametrize(("verb", "names"), [
    ("train", list(ON)), ("plan", ["drop-last", "pointwise"]), ("measure", ["drop-last", "pointwise"]),
    ("spectrum", ["drop-last"]),
])  # fmt: skip
def test_what_is_on_by_default_is_described_under_the_name_that_switches_it_on(
    verb: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(verb, capsys)
    for name in names:
        assert getattr(ON[name](), name.replace("-", "_")) is True
        assert re.search(rf"--{name}, --no-{name} [A-Z][^(]*\(default: True\)", text), name


def test_no_switch_is_described_under_the_name_that_switches_it_off_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    described = re.findall(r"(\S+ )--no-([a-z-]+) (?=[A-Z])", text)
    assert len(described) >= len(ON)
    assert all(before == f"--{name}, " for before, name in described)


def test_the_help_says_that_a_length_in_steps_goes_over_one_in_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    assert "Passes over the training images; without effect where `steps` is given." in text
    assert "Length in steps, instead of `epochs`." in text


def test_both_names_of_a_switch_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for switch in ("--no-pointwise", "--pointwise"):
        assert main(["plan", "--codec", "hosvd", "--batch-size", "16", "--train-size", "64", switch]) == 0
        printed.append(capsys.readouterr().out)
    assert "ReLU" not in printed[0]
    assert "ReLU" in printed[1]
