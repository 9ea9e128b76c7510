"""How much memory there is, and how the C library (glibc) hands it out: programs may set that, libraries must not."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from allspark.errors import ConfigError

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLDS = (2**31 - 1, 2**25)  # the wanted one, and the most that older versions take [bytes]
_CHOSEN = ("trim_threshold", "top_pad", "mmap_threshold")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CACHES = ("glibc.malloc.tcache_count", "glibc.malloc.mxfast")


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, to use it again.

    glibc gives large buffers back to the kernel, so that each tensor is mapped, zeroed and given back page by page: a
    quarter of a training step (benchmarks/NOTES.md). Nothing happens without glibc, or where the environment says
    something about this.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}" in tunables for name in _CHOSEN):
        return
    if not _has_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # The others alone would do harm: setting any one of them ends glibc's own adaptation of the first.
    if any(mallopt(_MMAP_THRESHOLD, value) for value in _MMAP_THRESHOLDS):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)


def restart_without_caches() -> None:
    """Start the running program again, in this process, without glibc's lists of small pieces; once.

    Tensors are aligned, which leaves a small piece beside each. The lists (thread caches and fast bins) keep it or hand
    it to a small object, and the gaps around it can no longer be joined: an eighth of the memory in training
    (benchmarks/NOTES.md). The caches can only be turned off at a start. Nothing happens without glibc, or where the
    environment says something about either.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in tunables for name in _CACHES) or not _has_glibc():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join([tunables, *(f"{name}=0" for name in _CACHES)]).lstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def host_memory() -> int | None:
    """Memory that this process may have at most [bytes]: the machine's, or a container's share. None: nobody tells."""
    limits = []
    with suppress(ValueError, OSError, AttributeError):  # another system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        with suppress(ValueError, OSError):  # not Linux, or "max"
            limits.append(int(path.read_text()))
    return min(limits, default=None)


def require_host_memory(needed: int, what: str, fix: str) -> None:
    """Refuse what this machine cannot hold.

    Args:
        needed: how much it needs [bytes].
        what: it, and ``needs``.
        fix: what to do.

    Raises:
        ConfigError: it has not so much.
    """
    available = host_memory()
    if available is not None and needed > available:
        raise ConfigError(f"{what} {needed / 1e9:.1f} GB, and this machine has {available / 1e9:.1f}; {fix}")


def _has_glibc() -> bool:
    try:
        return sys.platform == "linux" and bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):  # another C library
        return False
