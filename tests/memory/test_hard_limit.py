"""Under a hard limit of the operating system, plain MCUNet runs out of memory and the converted one trains on."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's limits and counters")

# Batch 128 at 128x128, all layers trained: about 780 MB at the plain peak, 230 MB at the converted one.
_SCRIPT = """
import resource, sys
from pathlib import Path
import torch
import torch.nn.functional as F
import tuckprop
from tuckprop.zoo import build

torch.manual_seed(0)
torch.set_num_threads(1)
model = build("mcunet", classes=10)
if sys.argv[1] == "converted":
    tuckprop.convert(model, tuckprop.HOSVD(epsilon=0.8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
images, labels = torch.randn(128, 3, 16, 16), torch.arange(128) % 10
images = F.interpolate(images, (128, 128), mode="bilinear")

def step(x, y):
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

step(images[:2], labels[:2])  # Libraries take their own memory now.
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 450 * 10**6, used + 450 * 10**6))
for _ in range(2):
    step(images, labels)
print("finished")
"""


def train(arm: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _SCRIPT, arm], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_plain_training_does_not_fit() -> None:
    done = train("plain")
    assert done.returncode != 0
    assert "alloc" in done.stderr or "memory" in done.stderr
    assert "finished" not in done.stdout


@pytest.mark.slow
def test_converted_training_fits() -> None:
    done = train("converted")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
