"""Peaks of code whose allocations are known."""

import os
import subprocess
import sys

import pytest
import torch

from tuckprop.memory import allocator_peak, peak_rss

CPU = torch.device("cpu")
MEGA = 250_000  # Elements of float32 in a million bytes.


def test_tensors_that_are_alive_together_add_up() -> None:
    def run() -> None:
        a = torch.empty(MEGA)
        b = torch.empty(2 * MEGA)
        del a
        c = torch.empty(MEGA)
        del b, c

    assert allocator_peak(run, CPU) == 3_000_000


def test_what_was_there_before_does_not_count_nor_that_it_is_freed() -> None:
    before = [torch.empty(4 * MEGA)]

    def run() -> None:
        before.clear()
        torch.empty(MEGA)

    assert allocator_peak(run, CPU) == 1_000_000


def test_nothing_allocated_is_zero() -> None:
    assert allocator_peak(lambda: None, CPU) == 0


def test_what_is_returned_is_alive() -> None:
    assert allocator_peak(lambda: torch.ones(MEGA).sqrt(), CPU) == 2_000_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_allocators_own_counter() -> None:
    device = torch.device("cuda")
    peak = allocator_peak(lambda: torch.empty(MEGA, device=device), device)
    assert 1_000_000 <= peak <= 2 * 2**20


def test_measuring_writes_nothing_and_leaves_the_environment_as_it_was() -> None:
    code = (
        "import os, torch; from tuckprop import measure; before = dict(os.environ); "
        "measure(torch.nn.Linear(4, 4), lambda m: m(torch.ones(2, 4)).sum()); assert dict(os.environ) == before"
    )
    bare = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_asks_for_the_profilers_own_lines_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setenv("KINETO_LOG_LEVEL", "2")
    allocator_peak(lambda: seen.append(os.environ.get("KINETO_LOG_LEVEL")), CPU)
    assert (seen, os.environ["KINETO_LOG_LEVEL"]) == (["2"], "2")


def in_a_process_of_its_own(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_the_resident_set_grows_with_what_is_touched_and_never_falls() -> None:
    code = (
        "import torch; from tuckprop.memory import peak_rss; print(peak_rss()); x = torch.ones(60_000_000); "
        "print(peak_rss()); del x; print(peak_rss())"
    )
    before, during, after = in_a_process_of_its_own(code)
    assert 200_000_000 < during - before <= 300_000_000
    assert after > 0.99 * during  # The kernel counts in batches.


def test_the_resident_set_of_the_parent_does_not_count() -> None:
    """By getrusage a child that a large process starts has a large peak from the start."""
    child = "from tuckprop.memory import peak_rss; print(peak_rss())"
    code = (
        "import subprocess, sys, torch; x = torch.ones(100_000_000); "
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stdout)"
    )
    (peak,) = in_a_process_of_its_own(code)
    assert 10**7 < peak < 4 * 10**8
    assert peak_rss() > 10**7
