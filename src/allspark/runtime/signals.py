"""Ctrl-C and termination end a run between two steps, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from allspark.errors import UserError


class Interrupted(UserError):
    """A run was asked to stop and has saved itself. ``exit_code`` is the shell's: 130 or 143."""

    def __init__(self, message: str, exit_code: int, *, quiet: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.quiet = quiet


_EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    _EXIT_CODES[signal.SIGUSR1] = 143


class StopRequest:
    """While it is entered, signals that end a run only set ``exit_code``; a second SIGINT interrupts at once.

    SIGUSR1 is what SLURM is usually told to send some time before a job's end (``--signal=USR1@120``).

    Args:
        said: written to standard error as soon as the first signal comes: what is waited for may take a while.
    """

    def __init__(self, said: str = "") -> None:
        self.exit_code: int | None = None
        self._said = said
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_CODES:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._said and self.exit_code is None:
            os.write(2, f"\n{self._said}\n".encode())  # not print(): the signal may have come in the middle of one
        self.exit_code = _EXIT_CODES[number]
