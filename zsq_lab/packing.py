"""Integers of any width from 2 to 16 bits, packed without a gap: 4 bits two to a byte, 3 bits eight to three bytes.

No processor computes with 3-bit numbers; packing is for the file and for memory, and the numbers are unpacked before
use. The first code lies in the lowest bits of the first byte (the order of `numpy.packbits(bitorder="little")`).
Notebook 09 packs a layer by hand.
"""
import numpy as np

from .quantizer import integer_range

GROUP = 8  # codes that are handled together: 8 codes of b bits are b whole bytes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes 0 .. 2**bits - 1 (any shape, any integer type) as uint8 [packed_bytes(codes.size, bits)].

    Above 8 bits the low bytes come first, all of them, then the rest packed at `bits - 8`.
    Raises ValueError for bits outside 2..16 and for codes that do not fit.
    """
    _, largest = integer_range(bits, symmetric=False)
    codes = np.asarray(codes).reshape(-1)
    if codes.size and (codes.min() < 0 or codes.max() > largest):
        raise ValueError(f"codes of {bits} bits lie in 0..{largest}, got {codes.min()}..{codes.max()}: subtract the "
                         "quantizer's quant_min first")
    if bits > 8:
        return np.concatenate([(codes & 255).astype(np.uint8), _pack(codes >> 8, bits - 8)])
    return _pack(codes, bits)


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The `count` codes that `pack` put into `data` (uint8): uint8 up to 8 bits, else uint16.

    Raises ValueError when `data` has not the length of `count` codes.
    """
    integer_range(bits, symmetric=False)
    expected = packed_bytes(count, bits)
    if data.dtype != np.uint8 or data.shape != (expected,):
        raise ValueError(f"{count} codes of {bits} bits are {expected} bytes, got {data.dtype} {list(data.shape)}: the "
                         "file is damaged, or the width is another")
    if bits > 8:
        return data[:count].astype(np.uint16) | _unpack(data[count:], bits - 8, count).astype(np.uint16) << 8
    return _unpack(data, bits, count)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Widths 1..8: eight codes are shifted into one 64-bit word, of which the lowest `bits` bytes are kept."""
    if bits == 8:
        return codes.astype(np.uint8)
    padded = np.zeros((-(-codes.size // GROUP), GROUP), np.uint8)
    padded.reshape(-1)[:codes.size] = codes
    words = np.zeros(len(padded), "<u8")
    for place in range(GROUP):
        words |= padded[:, place].astype("<u8") << np.uint64(bits * place)
    return words.view(np.uint8).reshape(-1, GROUP)[:, :bits].reshape(-1)[:packed_bytes(codes.size, bits)]


def _unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 8:
        return data.copy()
    groups = -(-count // GROUP)
    padded = np.zeros(groups * bits, np.uint8)
    padded[:len(data)] = data
    words = np.zeros((groups, GROUP), np.uint8)
    words[:, :bits] = padded.reshape(groups, bits)
    words = words.view("<u8").reshape(-1)
    codes = np.empty((groups, GROUP), np.uint8)
    for place in range(GROUP):
        codes[:, place] = words >> np.uint64(bits * place) & np.uint64(2**bits - 1)
    return codes.reshape(-1)[:count]
