"""The only training loop. It knows no method by name."""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from allspark.batch import TrainBatch
from allspark.config.schema import Config
from allspark.data.stream import train_batches
from allspark.engine.checkpoint import checkpoint_path, kept_path, save_checkpoint
from allspark.engine.log import RunLog
from allspark.engine.result import peak_memory, write_result
from allspark.engine.run_folder import claim
from allspark.engine.session import Session, begin_record, open_session
from allspark.engine.state import State, meta, random_states, tensors
from allspark.engine.step import update
from allspark.engine.ui import Silent, TrainUI
from allspark.engine.validation import validate
from allspark.errors import DataError, UserError
from allspark.files import atomic_path
from allspark.runtime.agreement import (
    CONTINUE,
    FAILED,
    agree_on,
    fail_together,
    quiet_when_peers_are_gone,
    raise_in_all,
)
from allspark.runtime.collectives import all_reduce, world_size
from allspark.runtime.devices import start_processes
from allspark.runtime.signals import Interrupted, StopRequest


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Scores are mIoU from 0 to 1, None where there was no validation."""

    out: Path
    steps: int
    best: float | None
    last: float | None


def train(config: Config, out: Path, *, resume: bool = False, ui: TrainUI | None = None) -> TrainResult:
    """Train a method and keep config, log and checkpoints in ``out``.

    Args:
        config: complete configuration; ``data.root`` must be set.
        out: folder of the run, made if need be.
        resume: go on from ``out``'s last checkpoint, exactly where it stopped.
        ui: where to report; None: nowhere.

    Raises:
        UserError: the input is wrong (one line), or a loss is not finite.
        Interrupted: the run was asked to stop, and has written a checkpoint.
    """
    accelerator = start_processes(config)
    with quiet_when_peers_are_gone():
        return _train(config, out, resume, accelerator, ui)


def _train(config: Config, out: Path, resume: bool, accelerator: Accelerator, ui: TrainUI | None) -> TrainResult:
    ui = ui if ui is not None and accelerator.is_main_process else Silent()
    session = open_session(config, out, resume, accelerator, ui)
    state = session.state
    if state.step >= session.total:
        ui.note(f"{out}: finished already, {state.step} of {session.total} steps")
        return TrainResult(out, state.step, state.best, state.last)
    with ExitStack() as claimed:
        with fail_together():
            if session.main:
                claimed.enter_context(closing(claim(out)))
                begin_record(session)
        _run(session)
    return TrainResult(out, state.step, state.best, state.last)


def _run(session: Session) -> None:
    """From where the session stands to the end, or to a request to stop."""
    state, out = session.state, session.out
    with StopRequest() as stop, ExitStack() as opened:
        log = None
        with fail_together():
            if session.main:
                log = opened.enter_context(RunLog(out, state.step, session.source.classes))
        opened.enter_context(_showing(session))
        with closing(_batches(session)) as batches:
            exit_code = _loop(session, batches, log, stop)
        if exit_code != CONTINUE:
            _save_last(session)
            count = session.accelerator.num_processes
            again = f"allspark train --out {shlex.quote(str(out))} --resume" + (
                f" --processes {count}" if count > 1 else ""
            )
            message = f"stopped after step {state.step} of {session.total}; go on with: {again}"
            raise Interrupted(message, exit_code, quiet=not session.main)
        with fail_together():
            if session.main:
                write_result(session)


def _loop(session: Session, batches: Iterator[TrainBatch], log: RunLog | None, stop: StopRequest) -> int:
    """Train until all steps are done or a stop is asked for; returns CONTINUE, or the exit status of the stop."""
    state, every = session.state, session.config.train
    while state.step < session.total:
        with _timed(state):
            parts, verdict = _next_parts(session, batches, stop)
            if verdict != CONTINUE:
                return verdict
            update(session, parts)
            at_end = state.step == session.total
            epoch, rest = divmod(state.step, session.steps_per_epoch)
            epoch_done = at_end or rest == 0
            row_due = at_end or state.step % every.log_every == 0
            if row_due or epoch_done:
                _settle(session)
        if row_due:
            _log_means(session, log)
        if at_end or (epoch_done and epoch % every.eval_every == 0):
            try:
                validate(session, log)
            except (UserError, OSError):
                _save_last(session)  # what is wrong with a validation image costs no training
                raise
        keep = every.keep_every is not None and state.step % every.keep_every == 0
        if epoch_done or keep or state.step % every.checkpoint_every == 0:
            _save_last(session, keep=keep)
        session.ui.advance(state.step)
    return CONTINUE


def _next_parts(session: Session, batches: Iterator[TrainBatch], stop: StopRequest) -> tuple[list[TrainBatch], int]:
    """The micro-batches of the next step; or the exit status of a stop, which any of the processes may ask for.

    All parts are read, in all processes, before the step touches any state, so that the state between two steps can
    still be saved: nothing is lost by a bad image.
    """
    parts: list[TrainBatch] = []
    error = None
    if stop.exit_code is None:
        try:
            parts = [next(batches) for _ in range(session.config.optim.accumulate)]
        except DataError as caught:
            error = caught
    # A termination signal usually reaches all processes of a job, and the readers end at once: that is no error.
    verdict = agree_on(stop.exit_code or (CONTINUE if error is None else FAILED))
    if verdict == FAILED:
        _save_last(session)
        raise_in_all(error)
    return parts, verdict


def _settle(session: Session) -> None:
    """Add the scalars of the last steps to the row of the log.

    Reading from a GPU waits for it, so that is left until a number is needed, and done in one transfer.

    Raises:
        UserError: a loss is not finite. Nothing is saved before this is called, so the last checkpoint is good.
    """
    if not session.unread:
        return
    own = torch.stack([values for *_, values in session.unread])
    _require_finite(session, own[:, 0])
    state, table = session.state, (all_reduce(own) / world_size()).tolist()
    for (_, _, names, _), values in zip(session.unread, table, strict=True):
        for name, value in zip(names, values, strict=True):
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.count += 1
    for name, pixels in sorted(session.class_pixels.items()):
        sums = state.class_pixels.get(name, [0] * len(pixels))
        state.class_pixels[name] = [a + b for a, b in zip(sums, all_reduce(pixels).tolist(), strict=True)]
    session.unread.clear()
    session.class_pixels.clear()


def _require_finite(session: Session, losses: Tensor) -> None:
    """Stop all processes at the first loss, of any of them, that is not a number."""
    error = None
    for (step, ids, *_), loss in zip(session.unread, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            last = checkpoint_path(session.out, "last")
            way = f"the checkpoint {last} is good: go on with --resume" if last.is_file() else "begin again with"
            error = UserError(
                f"the loss is {loss} in step {step} (images {', '.join(ids)}); {way} --set optim.clip_norm=1, "
                "or take a lower optim.lr in a new run"
            )
            break
    if agree_on(CONTINUE if error is None else FAILED) == FAILED:
        raise_in_all(error)


def _log_means(session: Session, log: RunLog | None) -> None:
    """Write the means since the last row."""
    state, data = session.state, session.config.data
    if not state.count:  # all steps were skipped
        return
    means = {name: total / state.count for name, total in state.sums.items() if name != "time"}
    images = state.count * (data.batch_labeled + data.batch_unlabeled * session.method.wants_unlabeled)
    row = {
        "step": state.step,
        "epoch": state.step / session.steps_per_epoch,
        **means,
        "lr": session.optimizer.param_groups[0]["lr"],
        "images_per_s": images * session.accelerator.num_processes / state.sums["time"],
        "seconds": state.seconds,
    }
    state.sums, state.count = {}, 0
    with fail_together():
        if log is not None:
            log.write(row)
    session.ui.row(row)


def _save_last(session: Session, *, keep: bool = False) -> None:
    _settle(session)
    session.state.peak_memory = max(session.state.peak_memory, peak_memory(session.accelerator.device))
    content = tensors(session) | random_states(session)
    with fail_together():
        if session.main:
            last = checkpoint_path(session.out, "last")
            save_checkpoint(last, content, meta(session))
            if keep:
                with atomic_path(kept_path(session.out, session.state.step)) as path:
                    shutil.copyfile(last, path)


@contextmanager
def _showing(session: Session) -> Iterator[None]:
    session.ui.begin(session.state.step, session.total)
    try:
        yield
    finally:
        session.ui.end()


@contextmanager
def _timed(state: State) -> Iterator[None]:
    """Count the time of training alone: no validation, no checkpoints."""
    began = time.perf_counter()
    yield
    elapsed = time.perf_counter() - began
    state.sums["time"] = state.sums.get("time", 0.0) + elapsed
    state.seconds += elapsed


def _batches(session: Session) -> Any:
    return train_batches(
        session.source,
        session.config,
        start_step=session.state.step,
        total_steps=session.total,
        want_unlabeled=session.method.wants_unlabeled,
        rank=session.accelerator.process_index,
        world=session.accelerator.num_processes,
        pin_memory=session.accelerator.device.type == "cuda",
    )
