"""The paper's tables and figures as configs, and what runs them."""

from tuckprop.reproduce.config import Config, known, read
from tuckprop.reproduce.grid import Run, runs
from tuckprop.reproduce.runner import Outcome, carry_out

__all__ = ["Config", "Outcome", "Run", "carry_out", "known", "read", "runs"]
