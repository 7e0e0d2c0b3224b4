"""Process-wide tuning, for programs to call: importing minibert changes nothing."""

import ctypes

# glibc's names for mallopt's parameters (malloc.h)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors free, for the next ones, until the process ends.

    By default glibc gives large blocks back to the kernel, which clears them page by page when they
    are asked for again: a fifth of a training step on a CPU. Call it before the first large tensor.
    Returns whether it took effect: where the C library has no `mallopt` it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS; Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
