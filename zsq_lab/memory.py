"""Freed memory that stays with the process: at 224x224 a network allocates and frees tens of megabytes for each layer.

By default the C library of Linux hands such blocks back to the system at once, which then clears every page again when
the next layer asks for it. Measured on EfficientNet-Lite0, one thread:
a forward and backward pass takes half the time without.
"""
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
LARGE = 128 * 128  # pixels of an image from which this matters


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed, for the rest of the process; False where it cannot (not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def is_large(image_shape: tuple[int, ...]) -> bool:
    """Whether images of this shape (channels, height, width) are large: batches and budgets are then others."""
    return len(image_shape) == 3 and image_shape[1] * image_shape[2] >= LARGE
