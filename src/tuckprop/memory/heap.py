"""Let freed tensors go back to the operating system at once, on Linux with glibc."""

import ctypes
import sys

from tuckprop.errors import ConfigError

_M_MMAP_THRESHOLD = -3


def return_freed_memory(threshold: int = 1 << 20) -> bool:
    """Make every allocation from `threshold` bytes on a mapping of its own, which ends when it is freed.

    By itself glibc raises this threshold to 32 MiB as large blocks are freed, and keeps what is below on a heap with
    holes: the resident set then stays well above what is in use. The price is time, as fresh pages are zeroed. Call it
    before training; the environment variable MALLOC_MMAP_THRESHOLD_ does the same.

    Args:
        threshold: Bytes, at least 4096.

    Returns:
        Whether it took effect: False where the C library is not glibc.

    Raises:
        ConfigError: `threshold` is too small.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int) or threshold < 4096:
        raise ConfigError(f"return_freed_memory(threshold=...): expected at least 4096 bytes, got {threshold!r}")
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, threshold))
