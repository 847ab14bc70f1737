"""Compiles the kernels on first use and loads them; says None where that can't be done."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

log = logging.getLogger("tuckprop")

_SOURCES = tuple(
    Path(__file__).with_name(f"{name}.c")
    for name in (
        "kernels",
        "codes",
        "depthwise",
        "batch_norm",
        "gram",
        "product",
        "chain",
        "tridiagonal",
        "eigen",
        "winograd",
        "winograd_weight",
    )
)
_HEADERS = tuple(
    Path(__file__).with_name(f"{name}.h") for name in ("half", "vectors", "tile", "product", "eigen", "winograd")
)
_FLAGS = ("-O3", "-march=native", "-fPIC", "-fopenmp")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None on other systems than Linux, without a C compiler, or if switched off.

    The result lies in the user's cache folder under a name that changes with source, compiler and processor. Setting
    the environment variable TUCKPROP_NATIVE to 0 switches the kernels off.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("TUCKPROP_NATIVE", "1") == "0" or sys.platform != "linux" or compiler is None:
        return None
    try:
        path = _folder() / f"kernels-{_fingerprint(compiler)}.so"
        if not path.exists():
            _compile(compiler, path)
        # PyTorch has loaded OpenMP for all to see: the kernels share its threads, and would not load without.
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("tuckprop: no native kernels, PyTorch's operations do their work: %s", error)
        return None


def _folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuckprop"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tuckprop-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="tuckprop-"))


def _fingerprint(compiler: str) -> str:
    """Return a name for the source, the compiler and the instructions of this processor."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    processor = sorted({line for line in lines if line.lower().startswith(("flags", "features", "cpu part"))})
    facts = (
        *[path.read_text() for path in (*_SOURCES, *_HEADERS)],
        compiler,
        str(Path(compiler).stat().st_mtime),
        platform.machine(),
        *_FLAGS,
        *processor,
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts, whole = [Path(folder, f"{source.stem}.o") for source in _SOURCES], Path(folder, "kernels.so")

        def run(arguments: list[str]) -> None:
            subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=120)

        # The first use waits for it: all at once.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            steps = [[*_FLAGS, "-c", str(s), "-o", str(part)] for s, part in zip(_SOURCES, parts, strict=True)]
            list(pool.map(run, steps))
        # Linked without -fopenmp: a second copy of its library would have threads of its own.
        run(["-shared", *map(str, parts), "-lm", "-o", str(whole)])
        whole.replace(path)
