"""Every closed form has a number in docs/predictions.md, and its docstring gives that number back."""

import inspect
import re
from pathlib import Path

from tuckprop.theory import cost, error, speed, storage

PAGE = Path(__file__).parents[2] / "docs" / "predictions.md"


def test_numbers_and_functions_belong_together() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)\.(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    listed = {(module, name): number for number, module, name in rows}
    for module in (cost, error, speed, storage):
        short = module.__name__.rpartition(".")[2]
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert f"Eq. {listed.pop((short, name))} of docs/predictions.md." in (function.__doc__ or "")
    assert not listed
