"""A layer under test stands for one within a model: nobody else holds its input."""

import pytest

from tuckprop.layers._held import NoteInputs


@pytest.fixture(autouse=True)
def inner_layer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Note no inputs of converted models, except in the tests of that."""
    if request.module.__name__.rpartition(".")[2] != "test_held":
        monkeypatch.setattr(NoteInputs, "__call__", lambda *args: None)
