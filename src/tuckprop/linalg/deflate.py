"""Bytes made fewer without loss, by the deflate method (zlib), on a CPU.

Signs of a rectifier's inputs are far from fair coins: a channel is mostly on or mostly off, and neighbours agree.
"""

import ctypes
import zlib
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from tuckprop.linalg.bits import pack_codes, unpack_codes

# The fastest level: the next ones cost half as much again, for 1% fewer bytes.
_LEVEL = 1

# No header and no checksum: the bytes stay in this process.
_RAW = -zlib.MAX_WBITS


def deflate(data: Tensor) -> Tensor:
    """Return fewer bytes that `inflate` makes into `data` again, or `data` itself where it cannot be made smaller.

    Args:
        data: uint8 [n], contiguous, on a CPU.

    Returns:
        uint8 [m], m <= n; m == n only for `data` itself.
    """
    coder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW)
    found = bytearray(coder.compress(_buffer(data)))
    found += coder.flush()
    return _tensor(found) if 0 < len(found) < data.numel() else data


def inflate(data: Tensor, count: int) -> Tensor:
    """Return the `count` bytes [count] that `deflate` was given."""
    if data.numel() == count:
        return data
    return _tensor(bytearray(zlib.decompress(_buffer(data), _RAW, count)))


def deflate_flags(flags: Tensor) -> Tensor:
    """Return yes or no an element in few bytes, for `inflate_flags`.

    Args:
        flags: bool or uint8, [batch, channels, ...], any strides, on a CPU.

    Returns:
        uint8 [m], m at most an eighth of the number of elements, rounded up. Channel by channel and along its rows,
        where flags are most alike.
    """
    by_channel = flags.transpose(0, 1) if flags.dim() > 1 else flags
    return deflate(pack_codes(by_channel.contiguous().view(torch.uint8), 1))


def inflate_flags(data: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the flags, bool, of this shape, that `deflate_flags` was given; strides may differ."""
    count = prod(shape)
    flags = unpack_codes(inflate(data, -(-count // 8)), 1, count).view(torch.bool)
    if len(shape) < 2:
        return flags.view(list(shape))
    return flags.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)


def _tensor(data: bytearray) -> Tensor:
    # A clone, in memory of PyTorch's own: where memory is counted, it is counted too.
    return torch.frombuffer(data, dtype=torch.uint8).clone()


def _buffer(data: Tensor) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * data.numel()).from_address(data.data_ptr())
