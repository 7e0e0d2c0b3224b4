"""How the C library keeps freed memory: one setting per process, which imports do not change."""

import ctypes

# glibc's names for mallopt's parameters (malloc.h)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for new tensors, until the process ends.

    By default glibc returns large blocks to the kernel. When they are needed again, the kernel
    clears them page by page, which takes a fifth of a training step on a CPU. Call this function
    before the first large tensor is made. It returns whether it had an effect: it does nothing if
    the C library has no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS, Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
