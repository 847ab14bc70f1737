"""Peak memory: of a piece of code by the allocator, of the whole process by the operating system."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tuckprop.errors import UnsupportedError


def allocator_peak(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that `run` had allocated at one time, over what was allocated before.

    Args:
        run: Is called once.
        device: On CUDA the caching allocator's own counter is read; elsewhere the profiler's allocation events are
            added up, which sees tensors but neither the scratch memory that a library takes on its own nor that
            something of before was freed.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler, if it first starts in this context, from writing lines of its own; a user's choice stands."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        del os.environ[name]


def peak_rss() -> int:
    """Return the peak resident set of this process so far, in bytes.

    It never falls: compare configurations in processes of their own.

    Raises:
        UnsupportedError: The system is Windows.
    """
    if sys.platform == "linux":
        # Not getrusage, whose peak is at least what the parent had when it started this process.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        raise UnsupportedError(f"peak_rss: expected Linux, macOS or another Unix, got {sys.platform}")
    # Here, as Windows has no such module.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
