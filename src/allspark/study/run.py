"""Run what a study is missing: each run a process of its own, on its own GPU if there are any."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from allspark.config.files import differences, load_config, save_config
from allspark.config.plugins import plugin_options
from allspark.engine.result import read_result
from allspark.errors import ConfigError, UserError
from allspark.files import atomic_write, lock_folder
from allspark.runtime.signals import Interrupted, StopRequest
from allspark.study.plan import NOT_WHAT_BUT_HOW, Planned

_POLL = 0.2  # [s]
_OUTPUT = "output.txt"  # of a run's process, beside its log
_PLAN = "planned.yaml"
_STAGE = "stage.json"
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


@dataclass
class _Running:
    planned: Planned
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    commands: list[list[str]]  # what follows when the process ends well


def missing(runs: Sequence[Planned]) -> list[Planned]:
    """Those runs that have no result yet.

    Raises:
        ConfigError: a run was made with other settings than the study asks for now.
    """
    for run in runs:
        _require_same_stage(run)
        path = run.out / _PLAN
        if path.is_file():
            for name, old, new in differences(load_config(path), run.config):
                if name in NOT_WHAT_BUT_HOW or (name == "data.pseudo" and run.stage is not None):
                    continue
                raise ConfigError(
                    f"{run.out}: made with {name} = {old}, the study says {new} now; take the old value, or choose "
                    "another --out"
                )
    return [run for run in runs if read_result(run.out) is None]


def _require_same_stage(run: Planned) -> None:
    path = run.out / _STAGE
    if not path.is_file():
        return
    then, now = json.loads(path.read_text("utf-8")), None if run.stage is None else run.stage.to_json()
    if then != now:
        raise ConfigError(f"{run.out}: made as {then}, the study says {now} now; take the old stage, or another --out")


def run_study(
    runs: Sequence[Planned],
    *,
    jobs: int,
    gpus: Sequence[str],
    again: str,
    note: Callable[[str], None],
    finished: Callable[[], object],
) -> None:
    """Run all of them, ``jobs`` at once; a run that was stopped or killed goes on where it stood.

    Args:
        runs: what is to be run.
        jobs: processes at once.
        gpus: names for CUDA_VISIBLE_DEVICES, given out in turn; empty: none.
        again: the command that goes on, for the message of an interruption.
        note: called with a line when a run begins or ends.
        finished: called after each run that has a result.

    Raises:
        Interrupted: it was asked to stop; the runs under way have saved themselves.
        UserError: some runs failed; all others were run.
    """
    waiting, failed, running = list(runs), list[str](), list[_Running]()
    busy = set[Path]()  # other processes write there
    with StopRequest("stopping: the runs under way finish their step and save themselves") as stop, _all_ended(running):
        while (waiting or running) and stop.exit_code is None:
            for planned in _hopeless(waiting, running):
                waiting.remove(planned)
                failed.append(f"{planned}: not begun, for {planned.after} is not finished")
                note(failed[-1])
            for planned in [run for run in waiting if _ready(run)]:
                if len(running) == jobs:
                    break
                if _taken(planned.out):
                    if planned.out not in busy:
                        note(f"{planned}: another process is at it; waiting")
                    busy.add(planned.out)
                    continue
                waiting.remove(planned)
                note(f"{planned}: {'goes on' if (planned.out / 'checkpoints').is_dir() else 'begins'}")
                slot = min(set(range(jobs)) - {one.slot for one in running})
                running.append(_begin(planned, slot, jobs, gpus))
            for one in [one for one in running if one.process.poll() is not None]:
                if one.process.returncode == 0 and one.commands:
                    one.process = _start(one.planned, one.commands.pop(0), one.slot, jobs, gpus)
                    continue
                running.remove(one)
                line = _outcome(one)
                note(line)
                if one.process.returncode == 0:
                    finished()
                else:
                    failed.append(line)
            time.sleep(_POLL)
    if stop.exit_code is not None:
        raise Interrupted(f"stopped; the runs under way are saved, go on with: {again}", stop.exit_code)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, the first: {failed[0]}; mend it and go on with: {again}"
        )


def _ready(planned: Planned) -> bool:
    return planned.after is None or read_result(planned.after.out) is not None


def _hopeless(waiting: Sequence[Planned], running: Sequence[_Running]) -> list[Planned]:
    """Those whose run before is neither finished nor will be."""
    coming = {run.out for run in (*waiting, *(one.planned for one in running))}
    return [run for run in waiting if not _ready(run) and run.after is not None and run.after.out not in coming]


def _begin(planned: Planned, slot: int, jobs: int, gpus: Sequence[str]) -> _Running:
    planned.out.mkdir(parents=True, exist_ok=True)
    save_config(planned.config, planned.out / _PLAN)
    with atomic_write(planned.out / _STAGE, "w") as file:
        json.dump(None if planned.stage is None else planned.stage.to_json(), file)
    train = ["train", "--config", str(planned.out / _PLAN), "--out", str(planned.out), "--resume"]
    commands = [[*train, *plugin_options()]]
    label = None if planned.stage is None else planned.stage.label
    if label is not None and not (planned.out / "checkpoints").is_dir():  # else it has begun with its labels
        assert planned.after is not None
        commands.insert(0, [*label.command(planned.after.out, planned.out), *plugin_options()])
    began = time.monotonic()
    return _Running(planned, _start(planned, commands[0], slot, jobs, gpus), slot, began, commands[1:])


def _start(
    planned: Planned, arguments: Sequence[str], slot: int, jobs: int, gpus: Sequence[str]
) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    command = [sys.executable, "-m", "allspark.cli.app", *arguments]
    with (planned.out / _OUTPUT).open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the study alone, which asks its runs to stop
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    """In the run's process: if the study is killed, save and stop as for a termination."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _all_ended(running: list[_Running]) -> Iterator[None]:
    """Whatever happens, no run is left behind: each is asked to stop, saves itself, and is waited for."""
    try:
        yield
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


def _taken(out: Path) -> bool:
    """Whether another process, such as a run of a study that was killed a moment ago, still writes there."""
    if not out.is_dir():
        return False
    try:
        lock_folder(out).close()
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            raise
        return True
    return False


def _outcome(one: _Running) -> str:
    minutes = (time.monotonic() - one.began) / 60
    lines = (one.planned.out / _OUTPUT).read_text("utf-8", "replace").splitlines()
    last = lines[-1].removeprefix(f"{one.planned.out}: ").removeprefix("error: ") if lines else "no output"
    if one.process.returncode == 0:
        return f"{one.planned}: {last} ({minutes:.1f} min)"
    code = one.process.returncode
    return f"{one.planned}: {last} (exit status {code}; {one.planned.out / _OUTPUT})"


def go_on_command(file: Path, out: Path, jobs: int, extra: Sequence[str]) -> str:
    """The command that takes a study up again."""
    words = [
        "allspark",
        "study",
        str(file),
        "--out",
        str(out),
        *plugin_options(),
        *(["--jobs", str(jobs)] if jobs > 1 else []),
    ]
    return shlex.join([*words, *(word for item in extra for word in ("--set", item))])
