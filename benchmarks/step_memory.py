"""What a training step takes in memory: bytes held for backward, and the peak over the start."""

from dataclasses import dataclass
from pathlib import Path

import torch
from arms import Training
from torch import Tensor

from tuckprop.memory import census, peak_rss


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step, in bytes.

    Attributes:
        held: Unique storages kept for backward when the forward ends, the batch left out.
        peak: The process's resident set at its highest (on a GPU: the caching allocator's) over what it was when model
            and batch were in place.
    """

    held: int
    peak: int


def step_memory(training: Training, images: Tensor, labels: Tensor, steps: int = 3) -> StepMemory:
    """Take the first steps of a training and measure them.

    Call it before any other step: what an earlier one left on the heap would serve these, and count for nothing.
    """
    cuda = training.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(training.device)
        start = torch.cuda.memory_allocated(training.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak of loading.
        start = _resident()
    for _ in range(steps):
        training.step(images, labels)
    peak = torch.cuda.max_memory_allocated(training.device) if cuda else peak_rss()
    with census(training.model) as counted:
        loss = training.loss(images, labels)
        held = counted.held_bytes
    del loss
    return StepMemory(held, peak - start)


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
