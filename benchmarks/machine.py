"""What a machine can do: the rates of a large matrix product and of a large copy."""

import time
from collections.abc import Callable

import torch


class Machine:
    """Measured rates of this machine, with the threads that PyTorch has now.

    Args:
        device: Where.
        product_size: Rows and columns of the matrices that the rate of products is measured with.
        copy_mb: Megabytes (10^6) that are copied to measure the rate of movement.
        tries: Tries at each rate, of which the best counts.

    Attributes:
        copy: Bytes a second, read and written.
        products: FLOPs a second of a square matrix product, by type, of those that were asked for.
    """

    def __init__(self, device: torch.device, product_size: int = 2048, copy_mb: int = 256, tries: int = 10) -> None:
        self._device, self._size, self._tries = device, product_size, tries
        self.products: dict[torch.dtype, float] = {}
        source = torch.ones(copy_mb * 10**6 // 4, device=device)
        target = torch.zeros_like(source)
        self.copy = 2 * source.nbytes / self._best(lambda: target.copy_(source))

    def product(self, dtype: torch.dtype) -> float:
        """Return FLOPs a second of a square matrix product in that type."""
        if dtype not in self.products:
            a, b = (torch.randn(self._size, self._size, device=self._device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            self.products[dtype] = 2 * self._size**3 / self._best(lambda: torch.mm(a, b, out=out))
        return self.products[dtype]

    def _best(self, run: Callable[[], object]) -> float:
        times = []
        for _ in range(self._tries + 1):
            self._wait()
            start = time.perf_counter()
            run()
            self._wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
