"""Fixtures of this room."""

import subprocess
from contextlib import redirect_stderr
from io import StringIO
from types import SimpleNamespace

import pytest

from tuckprop.cli import main


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what `reproduce` starts run in this process, which spares the start of one for each run."""

    def call(command: list[str], **settings: object) -> SimpleNamespace:
        assert command[1:3] == ["-m", "tuckprop.cli"]
        with redirect_stderr(StringIO()) as errors:
            code = main(command[3:])
        return SimpleNamespace(returncode=code, stderr=errors.getvalue())

    monkeypatch.setattr(subprocess, "run", call)
