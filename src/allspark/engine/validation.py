"""What happens at the end of an epoch: score, keep the best, see whether training is well."""

from __future__ import annotations

from typing import Any

from allspark.engine import health
from allspark.engine.checkpoint import checkpoint_path, save_checkpoint
from allspark.engine.log import RunLog
from allspark.engine.session import Session
from allspark.engine.state import meta, network_tensors
from allspark.errors import DataError
from allspark.inference.evaluate import evaluate
from allspark.inference.predictor import Predictor
from allspark.runtime.agreement import fail_together
from allspark.runtime.sharding import put_together


def validate(session: Session, log: RunLog | None) -> None:
    """Score the validation images, keep the network if it is the best so far, and see whether training is well."""
    state, config, source = session.state, session.config, session.source
    predictor = Predictor(session.method.segmenter, config.eval, session.accelerator.device)
    row: dict[str, Any] = {"step": state.step, "epoch": state.step / session.steps_per_epoch}

    def skipped(error: DataError) -> None:
        session.ui.note(f"skipped: {error}")

    with put_together(session.method.segmenter):
        if source.val:
            scores = evaluate(
                predictor,
                source.val,
                source,
                workers=config.data.workers,
                max_pixels=config.data.max_pixels,
                on_bad=skipped if config.data.on_bad_image == "skip" else None,
            )
            state.last = scores.miou
            best = state.best is None or scores.miou > state.best
            row |= {**scores.to_json(source.classes), "best": best}
            if best:
                state.best, state.best_step = scores.miou, state.step
        with fail_together():
            if log is not None:  # the process that writes
                _examine(session, predictor, row)
    content = network_tensors(session) if row.get("best") else {}
    with fail_together():
        if log is None:
            return
        if content:
            save_checkpoint(checkpoint_path(session.out, "best"), content, meta(session))
        log.write(row)
    session.ui.row(row)


def _examine(session: Session, predictor: Predictor, row: dict[str, Any]) -> None:
    """Add the health of the run to a validation's row, and warn when it is bad."""
    state, config, classes = session.state, session.config, session.source.classes
    found: dict[str, Any] = {}
    if config.train.health_images:
        seen = health.look(
            predictor,
            session.source,
            config.train.health_images,
            session.watched,
            max_pixels=config.data.max_pixels,
        )
        session.watched = seen.labels
        found |= seen.to_json()
    for name, pixels in state.class_pixels.items():
        found[f"{name}_share"] = health.class_table(health.shares(pixels).tolist(), classes)
    for name, values in session.method.health().items():
        found[name] = health.class_table(values.tolist(), classes)
    row["health"] = found
    scores = None if state.last is None or state.best is None else (state.last, state.best)
    line, state.warned = health.warning(state.class_pixels, classes, state.step / session.total, scores, state.warned)
    state.class_pixels = {}
    if line is not None:
        row["warning"] = line
        session.ui.note(f"warning: {line}")
