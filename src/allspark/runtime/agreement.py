"""What fails in one process ends all, and what one is asked to do all do: none waits for one that is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist

from allspark.errors import UserError
from allspark.runtime.collectives import all_gather_object, control_group, rank, world_size

CONTINUE, SKIPPED, FAILED = 0, 1, 1000
"""Verdicts of :func:`agree_on`; before the last lie exit statuses of a stop (130, 143). SKIPPED: on, without a file."""


class ElsewhereError(UserError):
    """Another process failed; its message is shown once, by process 0."""

    quiet = True


def agree_on(code: int) -> int:
    """The largest code of all processes: every process calls this between two steps, so that all go on, or none."""
    if world_size() == 1:
        return code
    verdict = torch.tensor(code)
    dist.all_reduce(verdict, dist.ReduceOp.MAX, group=control_group())
    return int(verdict)


def leave_group() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave_and_exit(status: int) -> NoReturn:
    """Part from the other processes and end this one at once.

    One of gloo's threads can abort a process while Python takes its modules apart; this exit does not take them apart.
    """
    leave_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def fail_together() -> Iterator[None]:
    """What fails in one process fails in all: none waits for one that is gone. No collective may stand inside."""
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_in_all(error)


@contextmanager
def quiet_when_peers_are_gone() -> Iterator[None]:
    """End quietly when another process is gone: it has said why, or what started the processes says so."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)
        if world_size() == 1 or not lost:
            raise
        raise ElsewhereError("another process of this training is gone") from error


_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


def raise_in_all(error: Exception | None) -> None:
    """Raise if any process has an error. The first one's message is raised by process 0, to be shown once.

    Raises:
        ElsewhereError: in all other processes.
    """
    messages = all_gather_object(None if error is None else _message(error))
    first = next((number for number, message in enumerate(messages) if message is not None), None)
    if first is None:
        return
    if error is not None and (rank() == 0 or not isinstance(error, (UserError, OSError))):
        raise error  # what is not the user's fault keeps its traceback
    if rank() == 0:
        raise UserError(f"process {first}: {messages[first]}")
    raise ElsewhereError(str(messages[first])) from error


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
