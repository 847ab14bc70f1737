"""Numbers of a device that the host reads a step later, when they have long arrived, so that neither waits.

A GPU runs behind the host that queues its work. Reading a number off it (`float(x)`) empties that queue, once a site
and step: the GPU then idles while the host queues the next layer.
"""

from typing import Any

import torch
from torch import Tensor


def waiting_costs(device: torch.device) -> bool:
    """Say whether reading a number off this device stalls it: on all but the CPU."""
    return device.type != "cpu"


def capturing(device: torch.device) -> bool:
    """Say whether a CUDA graph is being captured, in which nothing can be read at all."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Lagged:
    """A few numbers on their way to the host; the copy is queued at once and waited for when it is read.

    Args:
        values: Shape [n], any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values

    def read(self) -> list[float]:
        """Return the numbers, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        numbers: list[float] = self._values.tolist()
        return numbers

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the numbers alone: an event belongs to its process."""
        return Lagged, (torch.tensor(self.read(), dtype=self._values.dtype),)
