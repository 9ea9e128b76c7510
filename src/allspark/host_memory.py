"""Memory of the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, to use it again.

    glibc gives large buffers back to the kernel, so that each tensor is mapped, zeroed and given back page by page: a
    quarter of a training step (docs/performance.md). For programs, not for libraries: it holds for all of the process.
    Nothing happens without glibc, or where one of its environment variables for this is set.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _ENVIRONMENT):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    for parameter, value in ((_MMAP_THRESHOLD, 2**31 - 1), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)
