"""Freed memory goes back to the operating system."""

import subprocess
import sys

import pytest

from tuckprop.errors import ConfigError
from tuckprop.memory import return_freed_memory

# A block that outlives its neighbours keeps the heap from shrinking.
_SCRIPT = """
import sys, torch
from pathlib import Path
from tuckprop.memory import keep_freed_memory, return_freed_memory

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024

if sys.argv[1] == "returned":
    assert return_freed_memory()
if sys.argv[1] == "all kept":
    assert keep_freed_memory()
torch.ones(6 << 20)  # Frees 24 MiB: glibc now keeps smaller blocks on its heap.
blocks = []
for _ in range(20):
    blocks.append(torch.ones(2 << 20))
    pin = torch.ones(16 << 10)
    blocks.append(pin)
before = resident()
blocks = blocks[1::2]
print(before - resident())
"""


def freed(arm: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, arm], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_blocks_leave_the_resident_set() -> None:
    assert freed("returned") >= 150
    assert freed("kept") < 50


_FAULTS = """
import resource, sys, torch
from tuckprop.memory import keep_freed_memory

if sys.argv[1] == "all kept":
    assert keep_freed_memory()
for _ in range(3):
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_kept_memory_needs_no_fresh_pages() -> None:
    def faults(arm: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, arm], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # 64 MiB ten times: 16,384 pages of 4 KiB each time, or 32 of 2 MiB.
    assert faults("all kept") < 10 < 300 <= faults("by itself")


@pytest.mark.parametrize("threshold", [0, -1, 1.5, True, 100])
def test_wrong_thresholds_are_refused(threshold: object) -> None:
    with pytest.raises(ConfigError, match="4096"):
        return_freed_memory(threshold)  # type: ignore[arg-type]
