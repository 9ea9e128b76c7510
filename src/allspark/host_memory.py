"""Memory of the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLDS = (2**31 - 1, 2**25)  # the wanted one, and the most that older versions take [bytes]
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, to use it again.

    glibc gives large buffers back to the kernel, so that each tensor is mapped, zeroed and given back page by page: a
    quarter of a training step (docs/performance.md). For programs, not for libraries: it holds for all of the process.
    Nothing happens without glibc, or where one of its environment variables for this is set.
    """
    chosen = any(name in os.environ for name in _ENVIRONMENT) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or chosen:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    # The others alone would do harm: setting any one of them ends glibc's own adaptation of the first.
    if any(mallopt(_MMAP_THRESHOLD, value) for value in _MMAP_THRESHOLDS):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)
