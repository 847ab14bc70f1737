"""Numbers of a few bits packed into bytes, at memory speed, by PyTorch's own operations.

Two layouts, each the one that unpacks in the fewest passes over long rows:
    flags   1 bit. A slab of s elements is 8 planes: bit j of byte i is element j * (s / 8) + i of the slab.
    codes   1, 2, 4 or 8 bits. Neighbours share a byte, the first in its lowest bits.
Work goes slab by slab, so that intermediate results stay in the processor's caches and no buffer of the activation's
size is ever made: most of what a pass over a large new tensor costs on a CPU is the operating system handing out pages.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from tuckprop.errors import ConfigError

# Elements of a slab, a multiple of 8. Smaller slabs stay in faster caches (a quarter of it gains 5% on an idle CPU).
# But each operation on a slab is a meeting of all threads, and takes milliseconds where other programs, such as a data
# loader's processes, compete for the cores. On an accelerator each slab costs several launches.
_CPU_SLAB = 1 << 20
_ACCELERATOR_SLAB = 1 << 22

CODE_BITS = (1, 2, 4, 8)

# For each type of gradient, the integer of its size and the place of the lowest of the 8 bits that make a gate.
_GATES = {
    torch.float64: (torch.int64, 52),
    torch.float32: (torch.int32, 23),
    torch.bfloat16: (torch.int16, 7),
    torch.float16: (torch.int16, 7),
}

# Writes the flags (0 or 1) of one slab into the tensor it is given.
WriteFlags = Callable[[slice, Tensor], None]


def slabs(count: int, device: torch.device) -> Iterator[slice]:
    """Yield the slices of at most one slab that together cover `count` elements."""
    size = _CPU_SLAB if device.type == "cpu" else _ACCELERATOR_SLAB
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes `count` numbers of `bits` bits take.

    Raises:
        ConfigError: `bits` is none of 1, 2, 4 and 8.
    """
    if bits not in CODE_BITS:
        raise ConfigError(f"expected a code of 1, 2, 4 or 8 bits, got {bits!r}")
    return -(-count * bits // 8)


def _bytes_of(part: slice, bits: int = 1) -> slice:
    return slice(part.start * bits // 8, packed_bytes(part.stop, bits))


def code_slabs(count: int, bits: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield the slabs of `count` numbers of `bits` bits, and the bytes that each takes when packed."""
    for part in slabs(count, device):
        yield part, _bytes_of(part, bits)


def collect_flags(write: WriteFlags, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pack flags that are made slab by slab, in a single pass over whatever they are made from.

    Args:
        write: Called with each slab and a tensor [size of the slab] of `dtype`, to be filled with zeros and ones.
        count: Number of flags.
        dtype: bool or a floating type.
        device: Where.

    Returns:
        uint8, [ceil(count / 8)].
    """
    packed = torch.empty(packed_bytes(count, 1), dtype=torch.uint8, device=device)
    work = torch.empty(0, dtype=dtype, device=device)
    for part in slabs(count, device):
        size, place = part.stop - part.start, _bytes_of(part)
        padded = 8 * (place.stop - place.start)
        if work.numel() < padded:
            work = work.new_empty(padded)
        write(part, work[:size])
        work[size:padded] = 0
        _pack_slab(work[:padded], packed[place])
    return packed


def pack_flags(flags: Tensor) -> Tensor:
    """Pack a tensor of flags.

    Args:
        flags: Contiguous, any shape, bool or floating; all values are 0 or 1.

    Returns:
        uint8, [ceil(count / 8)].
    """
    flat = flags.reshape(-1)
    count = flat.numel()
    whole = count - count % 8
    packed = torch.empty(packed_bytes(count, 1), dtype=torch.uint8, device=flags.device)
    for part in slabs(count, flags.device):
        values, place = flat[part], packed[_bytes_of(part)]
        if part.stop > whole:
            values = torch.nn.functional.pad(values, (0, 8 * place.numel() - values.numel()))
        _pack_slab(values, place)
    return packed


def unpack_flags(packed: Tensor, count: int) -> Tensor:
    """Return the bool tensor [count] that `pack_flags` or `collect_flags` packed."""
    flags = torch.empty(count, dtype=torch.uint8, device=packed.device)
    bits = _bit_values(torch.uint8, packed.device)
    for part in slabs(count, packed.device):
        # In place on bytes, because PyTorch's comparisons are slow where the result is of another type.
        planes = torch.bitwise_and(packed[_bytes_of(part)], bits).ne_(0)
        flags[part] = planes.view(-1)[: part.stop - part.start]
    return flags.view(torch.bool)


def _pack_slab(flags: Tensor, out: Tensor) -> None:
    """Write the flags of one slab [8 m], zeros and ones, into its bytes `out` [m]."""
    planes = flags.view(8, -1)
    if not flags.is_floating_point():
        weighted = torch.mul(planes.view(torch.uint8), _bit_values(torch.uint8, out.device))
        torch.sum(weighted, 0, dtype=torch.uint8, out=out)
        return
    if flags.element_size() == 2:  # Products of 16-bit matrices this thin are slow.
        planes = planes.float()
    # Sums of distinct powers of two up to 255: exact in every floating type, in whatever order.
    sums = planes.new_empty(1, out.numel())
    out.copy_(torch.mm(_bit_values(planes.dtype, out.device).view(1, 8), planes, out=sums)[0])


@lru_cache(maxsize=64)
def _bit_values(dtype: torch.dtype, device: torch.device, lowest: int = 0) -> Tensor:
    """Return [8, 1]: the values of eight bits, the lowest of them bit number `lowest`."""
    return torch.tensor([[1 << (lowest + j)] for j in range(8)], device="cpu").to(device, dtype)


def gates(packed: Tensor, count: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield slab after slab of flags as gates: a positive number where the flag is set, else zero.

    A gate is what PyTorch's own derivative of ReLU asks of its input, and takes one pass to make: the flag's bit is
    left where it is and read as part of the exponent of a floating number.

    Args:
        packed: Flags, as `pack_flags` packs them.
        count: Number of flags.
        dtype: Type of the gates: float64, float32, bfloat16 or float16.

    Yields:
        The slab and its gates, which are overwritten in the next turn.
    """
    integer, lowest = _GATES[dtype]
    bits = _bit_values(integer, packed.device, lowest)
    place_of_lowest = bits[0]
    work = torch.empty(0, dtype=integer, device=packed.device)
    for part in slabs(count, packed.device):
        exponents = torch.mul(packed[_bytes_of(part)], place_of_lowest)
        padded = 8 * exponents.numel()
        if work.numel() < padded:
            work = work.new_empty(padded)
        torch.bitwise_and(exponents, bits, out=work[:padded].view(8, -1))
        yield part, work.view(dtype)[: part.stop - part.start]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack whole numbers of a few bits.

    Args:
        codes: uint8, contiguous, any shape, all values below 2 ** bits.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, [ceil(count * bits / 8)].

    Raises:
        ConfigError: `bits` is none of 1, 2, 4 and 8.
    """
    flat = codes.reshape(-1)
    packed = torch.empty(packed_bytes(flat.numel(), bits), dtype=torch.uint8, device=codes.device)
    for part, place in code_slabs(flat.numel(), bits, codes.device):
        join_codes(flat[part], bits, packed[place])
    return packed


def join_codes(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write the packed form of uint8 `codes` [n] into `out`, uint8 [ceil(n * bits / 8)], at one go."""
    if padding := 8 * out.numel() // bits - codes.numel():
        codes = torch.nn.functional.pad(codes, (0, padding))
    while bits < 8:
        # The pair (a, b) is a + 256 b, and its low byte shall be a + 2 ** bits * b.
        pairs = codes.view(torch.int16)
        codes = torch.bitwise_right_shift(pairs, 8 - bits).bitwise_or_(pairs).to(torch.uint8)
        bits *= 2
    out.copy_(codes)


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return uint8 [count], the numbers that `pack_codes` packed."""
    codes = torch.empty(count, dtype=torch.uint8, device=packed.device)
    for part, place in code_slabs(count, bits, packed.device):
        codes[part] = split_codes(packed[place], bits)[: part.stop - part.start]
    return codes


def split_codes(packed: Tensor, bits: int) -> Tensor:
    """Return uint8 [8 / bits * n], all the codes that are in `packed` [n]."""
    held = 8
    while held > bits:
        held //= 2
        both = ((1 << held) - 1) * 257
        pairs = packed.to(torch.int16)
        packed = torch.bitwise_left_shift(pairs, 8 - held).bitwise_or_(pairs).bitwise_and_(both).view(torch.uint8)
    return packed
