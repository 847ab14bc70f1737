"""What glibc does with freed memory, on Linux: hand it back to the operating system at once, or keep it.

By itself it keeps blocks below a threshold, which rises to 32 MiB as large ones are freed, on a heap with holes, and
hands larger ones back. So the resident set stays above what is in use, and large tensors are made of fresh pages, which
the operating system zeroes, in every step. Either function changes one of the two; call it before training.
"""

import ctypes
import sys

from tuckprop.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# glibc's own threshold before it has seen a large block freed.
_SMALL = 128 << 10

# Larger than any tensor of a training run; the largest number that mallopt takes.
_ALL = 2**31 - 1


def return_freed_memory(threshold: int = _SMALL) -> bool:
    """Make every allocation from `threshold` bytes on a mapping of its own, which ends when it is freed: least memory.

    The price is time, as fresh pages are zeroed. The environment variable MALLOC_MMAP_THRESHOLD_ does the same.

    Args:
        threshold: Bytes, at least 4096.

    Returns:
        Whether it took effect: False where the C library is not glibc.

    Raises:
        ConfigError: `threshold` is too small.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int) or threshold < 4096:
        raise ConfigError(f"return_freed_memory(threshold=...): expected at least 4096 bytes, got {threshold!r}")
    return _set(_M_MMAP_THRESHOLD, threshold)


def keep_freed_memory() -> bool:
    """Keep freed memory on the heap, for the next tensor: least time, as allocators that replace glibc's do.

    The price is memory: the resident set never falls, and holes on the heap add to it. The environment variables
    MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ do the same.

    Returns:
        Whether it took effect: False where the C library is not glibc.
    """
    return _set(_M_MMAP_THRESHOLD, _ALL) and _set(_M_TRIM_THRESHOLD, _ALL)


def _set(parameter: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))
