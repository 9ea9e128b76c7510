"""The only training loop. It knows no method by name."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allspark.config import Config
from allspark.data.loading import train_batches
from allspark.engine.checkpoint import checkpoint_path, model_tensors, save_checkpoint
from allspark.engine.evaluate import evaluate
from allspark.engine.log import RunLog
from allspark.engine.optim import poly, set_lr
from allspark.engine.session import Session, look_at, meta, open_session, tensors
from allspark.engine.signals import Interrupted, StopRequest
from allspark.engine.ui import Silent, TrainUI
from allspark.errors import UserError
from allspark.inference.predictor import Predictor
from allspark.types import Progress, StepOutput, TrainBatch


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
    ui = ui or Silent()
    checkpoint = look_at(out, resume)
    session = open_session(config, out, checkpoint, ui)
    state = session.state
    if state.step >= session.total:
        ui.note(f"{out}: finished already, {state.step} of {session.total} steps")
        return TrainResult(out, state.step, state.best, state.last)
    with StopRequest() as stop, RunLog(out, state.step) as log, closing(_batches(session)) as batches:
        ui.begin(state.step, session.total)
        try:
            while state.step < session.total:
                _update(session, batches)
                at_end = state.step == session.total
                epoch_done = state.step % session.steps_per_epoch == 0 or at_end
                if state.step % config.train.log_every == 0 or at_end:
                    _log_means(session, log)
                if epoch_done and (at_end or _epoch(session) % config.train.eval_every == 0):
                    _validate(session, log)
                if stop.exit_code or epoch_done or state.step % config.train.checkpoint_every == 0:
                    save_checkpoint(checkpoint_path(out, "last"), tensors(session), meta(session))
                ui.advance(state.step)
                if stop.exit_code and not at_end:
                    again = f"allspark train --out {shlex.quote(str(out))} --resume"
                    raise Interrupted(
                        f"stopped after step {state.step} of {session.total}; go on with: {again}", stop.exit_code
                    )
        finally:
            ui.end()
    return TrainResult(out, state.step, state.best, state.last)


def _update(session: Session, batches: Iterator[TrainBatch]) -> None:
    """One weight update."""
    began = time.perf_counter()
    config, state = session.config, session.state
    progress = Progress(state.step, session.steps_per_epoch, session.total)
    set_lr(session.optimizer, config.optim, poly(state.step, session.total, config.optim.power))
    for part in range(config.optim.accumulate):
        batch = next(batches)
        for line in batch.skipped:
            session.ui.note(f"skipped: {line}")
        with session.accelerator.accumulate(session.wrapped):
            output: StepOutput = session.wrapped(_to_device(batch, session), progress)
            values = _values(output)
            if not math.isfinite(values["loss"]):
                ids = (*batch.labeled.ids, *(batch.unlabeled.ids if batch.unlabeled else ()))
                raise UserError(
                    f"the loss is {values['loss']} in step {state.step + 1} (images {', '.join(ids)}); the last "
                    f"checkpoint in {session.out} is good: resume with a lower optim.lr or with optim.clip_norm"
                )
            session.accelerator.backward(output.loss)
            if part == config.optim.accumulate - 1 and config.optim.clip_norm is not None:
                session.accelerator.clip_grad_norm_(session.method.parameters(), config.optim.clip_norm)
            session.optimizer.step()
            session.optimizer.zero_grad(set_to_none=True)
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.count += 1
    session.method.after_step(progress)
    state.step += 1
    state.sums["time"] = state.sums.get("time", 0.0) + time.perf_counter() - began
    state.seconds += time.perf_counter() - began


def _log_means(session: Session, log: RunLog) -> None:
    """Write the means since the last row."""
    state, data = session.state, session.config.data
    means = {name: total / state.count for name, total in state.sums.items() if name != "time"}
    images = state.count * (data.batch_labeled + data.batch_unlabeled * session.method.wants_unlabeled)
    row = {
        "step": state.step,
        "epoch": state.step / session.steps_per_epoch,
        **means,
        "lr": session.optimizer.param_groups[0]["lr"],
        "images_per_s": images * session.accelerator.num_processes / max(state.sums["time"], 1e-9),
        "seconds": state.seconds,
    }
    state.sums, state.count = {}, 0
    log.write(row)
    session.ui.row(row)


def _validate(session: Session, log: RunLog) -> None:
    """Score the validation images; keep the network if it is the best so far."""
    state, config = session.state, session.config
    if not session.source.val:
        return
    scores = evaluate(
        Predictor(session.method.segmenter, config.eval, session.accelerator.device),
        session.source.val,
        session.source,
        workers=config.data.workers,
        max_pixels=config.data.max_pixels,
    )
    state.last = scores.miou
    best = state.best is None or scores.miou > state.best
    if best:
        state.best = scores.miou
        save_checkpoint(checkpoint_path(session.out, "best"), model_tensors(session.method.segmenter), meta(session))
    row = {
        "step": state.step,
        "epoch": state.step / session.steps_per_epoch,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "best": best,
        "iou": scores.to_json(session.source.classes)["iou"],
    }
    log.write(row)
    session.ui.row(row)


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


def _to_device(batch: TrainBatch, session: Session) -> TrainBatch:
    batch = batch.to(session.accelerator.device, non_blocking=True)
    return batch.with_images(torch.float64) if session.config.train.precision == "fp64" else batch


def _values(output: StepOutput) -> dict[str, float]:
    """The step's scalars, in one transfer from the device."""
    names = ["loss", *output.metrics]
    stacked: Tensor = torch.stack([output.loss.detach().double(), *(x.double() for x in output.metrics.values())])
    return dict(zip(names, stacked.tolist(), strict=True))


def _epoch(session: Session) -> int:
    return session.state.step // session.steps_per_epoch
