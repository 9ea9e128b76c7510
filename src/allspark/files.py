"""Writes that either happen whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there takes the name ``path`` when the block ends well.

    Its bytes are flushed to disk first. When the block fails, ``path`` is left untouched and the temporary file is
    removed.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (None, name):  # a full disk, say: name what was to be written
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_write(path: Path, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` when the block ends well, and leaves it untouched when it does not."""
    encoding, errors = ("utf-8", "surrogateescape") if mode == "w" else (None, None)  # names may be no UTF-8
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding, errors=errors) as file:
        yield file


def lock_folder(folder: Path) -> IO[str]:
    """Claim a folder for this process until the returned file is closed, or the process ends in whatever way.

    Raises:
        OSError: another process has it, or ``.lock`` is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # what a link leads to is somebody else's
    file = os.fdopen(os.open(folder / ".lock", flags, 0o666), "r+")
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            # Not flock: forked processes that read images would hold it on after this process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut; Windows, which opens no folder, does so by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
