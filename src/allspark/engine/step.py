"""One weight update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.engine.checkpoint import checkpoint_path
from allspark.engine.optim import poly, set_lr
from allspark.engine.session import Session
from allspark.errors import UserError
from allspark.inference.predictor import out_of_memory
from allspark.runtime.agreement import CONTINUE, FAILED, agree_on
from allspark.runtime.collectives import all_gather_object


def update(session: Session, parts: list[TrainBatch]) -> None:
    """One weight update."""
    optim, state = session.optim, session.state
    progress = Progress(state.step, session.steps_per_epoch, session.total)
    set_lr(session.optimizer, optim, poly(state.step, session.total, optim.power))
    # What a step changes beside weights and momentum, to be taken back where its loss is not finite.
    skips = session.config.train.on_nan == "skip"
    before = {name: x.clone() for name, x in session.method.named_buffers()} if skips else {}
    records = []
    for number, batch in enumerate(parts, 1):
        for line in batch.skipped:
            session.ui.note(f"skipped: {line}")
        with session.accelerator.accumulate(session.wrapped):
            with _memory_suffices(session):
                output: StepOutput = session.wrapped(_to_device(batch, session), progress)
                session.accelerator.backward(output.loss)
            records.append((batch, output))
            if number == len(parts) and not (skips and _take_back(session, before, records)):
                with _memory_suffices(session):  # momentum is made in the first step
                    if optim.clip_norm is not None:
                        session.accelerator.clip_grad_norm_(session.method.parameters(), optim.clip_norm)
                    session.optimizer.step()
                _record(session, records)
            session.optimizer.zero_grad(set_to_none=True)
    session.method.after_step(progress)
    state.step += 1


def _record(session: Session, records: list[tuple[TrainBatch, StepOutput]]) -> None:
    """Keep the scalars of a step, on their device, for the log."""
    for batch, output in records:
        names = ("loss", *output.metrics)
        values = torch.stack([output.loss.detach().double(), *(x.double() for x in output.metrics.values())])
        session.unread.append((session.state.step + 1, batch.ids, names, values))
        for name, pixels in output.class_pixels.items():
            session.class_pixels[name] = session.class_pixels.get(name, torch.zeros_like(pixels)) + pixels


def _take_back(session: Session, before: dict[str, Tensor], records: list[tuple[TrainBatch, StepOutput]]) -> bool:
    """Whether a loss of the step, in any process, is not finite; then memory and statistics are as they were."""
    lost = [batch.ids for batch, output in records if not math.isfinite(float(output.loss.detach()))]
    if agree_on(FAILED if lost else CONTINUE) == CONTINUE:
        return False
    for name, buffer in session.method.named_buffers():
        buffer.copy_(before[name])
    images = ", ".join(chain.from_iterable(chain.from_iterable(all_gather_object(lost))))
    session.ui.note(f"skipped: step {session.state.step + 1}, whose loss is not finite (images {images})")
    return True


@contextmanager
def _memory_suffices(session: Session) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        last = checkpoint_path(session.out, "last")
        raise UserError(
            f"out of memory in step {session.state.step + 1}: set model.activation_checkpointing=true (the same result "
            "more slowly), or take a smaller data.crop, data.batch_labeled or data.batch_unlabeled (with "
            "optim.accumulate the total stays the same), or a smaller model.encoder"
            + (f"; {last} is good" if last.is_file() else "")
        ) from error


def _to_device(batch: TrainBatch, session: Session) -> TrainBatch:
    batch = batch.to(session.accelerator.device, non_blocking=True)
    return batch.with_images(torch.float64) if session.config.train.precision == "fp64" else batch
