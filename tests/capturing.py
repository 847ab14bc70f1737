"""Where captures are tested: on a GPU, and on a CPU that acts as one."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tuckprop
from tuckprop.codecs import _half, _new_bases, asi, subspace
from tuckprop.linalg import orthonormal

# The module: the package's attribute of this name is the function.
capturing: Any = importlib.import_module("tuckprop.capture")


class Place:
    """A GPU, on which steps are captured.

    Attributes:
        device: Where.
    """

    device = torch.device("cuda")

    def capture(self, model: nn.Module, patience: int = 16) -> nn.Module:
        """Take a model there, and capture it."""
        return tuckprop.capture(model.to(self.device), patience=patience)


class Simulated(Place):
    """A CPU that acts as a GPU to trackers, and whose recorder runs a function again where a GPU would replay it.

    What a graph would have fixed is computed anew; which steps are captured and replayed, and what comes of it, is the
    same.
    """

    device = torch.device("cpu")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.recording = False
        for module in (asi, subspace, orthonormal, _half, _new_bases):
            patch.setattr(module, "waiting_costs", lambda device: True)
        for module in (asi, subspace, capturing):
            patch.setattr(module, "capturing", lambda device: self.recording)
        patch.setattr(capturing, "_device", lambda model: self.device)
        patch.setattr(capturing, "Recorder", lambda device: self)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a function as if it were captured, and return what replays it."""

        def replay() -> None:
            self.recording = True
            try:
                with torch.enable_grad():
                    run()
            finally:
                self.recording = False

        replay()
        return replay

    def capture(self, model: nn.Module, patience: int = 16) -> nn.Module:
        """Capture a model, wherever it is."""
        model.forward = capturing._Captures(model, None, patience)  # type: ignore[method-assign]
        return model
