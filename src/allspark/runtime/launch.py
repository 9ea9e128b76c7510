"""Start several processes of one command on this machine, and end all when one fails.

The processes find each other by the same environment variables that torchrun and accelerate set, so the command does
not know who started it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

from allspark.errors import UserError

_GRACE = 20.0  # for the others to end by themselves, once one has failed [seconds]
_LAST = 5.0  # and once more after they were asked to
_POLL = 0.05
_PARENT = "ALLSPARK_PARENT"
_PR_SET_PDEATHSIG = 1


def launched() -> bool:
    """Whether this process is one of several already.

    Raises:
        UserError: the environment says it in a way that nobody understands.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if not size.isdecimal():
        raise UserError(f"the environment variable WORLD_SIZE is {size!r}, expected a number of processes")
    return int(size) > 1


class ProcessesFailed(UserError):
    """One of the processes failed, or all were asked to stop; they have said why. ``exit_code`` is the first one's."""

    quiet = True

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"a process ended with exit status {exit_code}")
        self.exit_code = exit_code


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run ``allspark ARGUMENTS`` in several processes.

    Process 0 has this one's standard output and error. What another one says last is shown if it fails on its own.
    Signals that this process gets are passed on to all.

    Raises:
        ProcessesFailed: not all of them ended well.
    """
    port = _free_port()
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    running: list[subprocess.Popen[bytes]] = []
    failed: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="allspark-") as folder:
        said: list[IO[bytes]] = []
        try:
            for number in range(processes):
                own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _PARENT: str(os.getpid())}
                environment = {"OMP_NUM_THREADS": threads, **os.environ, **place}
                environment |= {name: str(value) for name, value in own.items()}
                said.append(open(os.path.join(folder, str(number)), "w+b"))  # noqa: SIM115 (closed below)
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "allspark.cli.app", *arguments],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=said[-1] if number else None,
                        stderr=said[-1] if number else None,
                        start_new_session=True,  # Ctrl-C comes through here, once
                    )
                )
            with _Forwarding(running):
                failed = _wait(running)
        finally:
            _end(running)
            words = [_last_line(file) for file in said]
    # Process 0 has shown what it had to say.
    for number, status in failed.items():
        if number and words[number]:
            print(f"process {number}: {words[number]}", file=sys.stderr)
            break
        if status == -signal.SIGKILL:
            print(f"error: process {number} was killed (out of memory?); go on with --resume", file=sys.stderr)
            break
    if failed:
        first = next(iter(failed.values()))
        raise ProcessesFailed(128 - first if first < 0 else first)


def follow_parent() -> None:
    """End when the process that launched this one is gone, even if it was killed (Linux)."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # gone before the line above
        os.kill(os.getpid(), signal.SIGTERM)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Wait for all; once one has failed, for some seconds only. Returns who failed by itself, the first one first."""
    failed: dict[int, int] = {}
    until = float("inf")
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        time.sleep(_POLL)
        for number, process in enumerate(running):
            if process.poll():
                failed.setdefault(number, process.returncode)
        if failed:
            until = min(until, time.monotonic() + _GRACE)
    return failed | {n: process.returncode for n, process in enumerate(running) if process.poll() and n not in failed}


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, patience in ((signal.SIGTERM, _LAST), (signal.SIGKILL, None)):
        alive = [process for process in running if process.poll() is None]
        for process in alive:
            process.send_signal(number)
        until = time.monotonic() + (patience or 0)
        for process in alive:
            try:
                process.wait(None if patience is None else max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    file.close()
    return re.sub(r"^\[rank\d+\]: ", "", lines[-1]) if lines else ""


class _Forwarding:
    """While it is entered, signals go on to the processes."""

    def __init__(self, running: Sequence[subprocess.Popen[bytes]]) -> None:
        self._running = running
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._previous[number] = signal.signal(number, self._forward)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
