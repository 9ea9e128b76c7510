"""The only training loop. It knows no method by name."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from allspark.config import Config
from allspark.data import open_source
from allspark.data.check import check
from allspark.data.loading import steps_per_epoch, train_batches
from allspark.data.source import Source
from allspark.engine.checkpoint import (
    Checkpoint,
    checkpoint_path,
    describe,
    load_checkpoint,
    load_model,
    model_tensors,
    save_checkpoint,
)
from allspark.engine.evaluate import evaluate
from allspark.engine.log import RunLog
from allspark.engine.optim import build_optimizer, poly, set_lr
from allspark.engine.signals import Interrupted, StopRequest
from allspark.engine.ui import Silent, TrainUI
from allspark.errors import CheckpointError, ConfigError, DataError, UserError
from allspark.inference.predictor import Predictor
from allspark.methods import build_method
from allspark.methods.base import Method
from allspark.models.encoders import resolve_encoder
from allspark.settings import save_config
from allspark.types import Progress, StepOutput, TrainBatch

# Settings that a resumed run may change: they do not touch what is learned.
_FREE = {"data.root", "data.workers", "data.max_pixels", "train.device", "train.log_every", "train.checkpoint_every"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Scores are mIoU from 0 to 1, None where there was no validation."""

    out: Path
    steps: int
    best: float | None
    last: float | None


@dataclass
class _State:
    """What outlives a step beside tensors; it is in every checkpoint."""

    step: int = 0  # weight updates done
    seconds: float = 0.0
    best: float | None = None
    last: float | None = None
    sums: dict[str, float] = field(default_factory=dict)  # of the log row that is being gathered
    count: int = 0


@dataclass
class _Run:
    """Everything that one call of :func:`train` works with."""

    config: Config
    out: Path
    source: Source
    accelerator: Accelerator
    method: Method  # bare, for its state
    wrapped: Any  # for its forward pass
    optimizer: torch.optim.Optimizer
    state: _State
    steps_per_epoch: int
    total: int
    ui: TrainUI


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
    checkpoint = _look_at(out, resume)
    run = _prepare(config, out, checkpoint, ui)
    state = run.state
    if state.step >= run.total:
        ui.note(f"{out}: finished already, {state.step} of {run.total} steps")
        return TrainResult(out, state.step, state.best, state.last)
    with StopRequest() as stop, RunLog(out, state.step) as log, closing(_batches(run)) as batches:
        ui.begin(state.step, run.total)
        try:
            while state.step < run.total:
                _update(run, batches)
                at_end = state.step == run.total
                epoch_done = state.step % run.steps_per_epoch == 0 or at_end
                if state.step % config.train.log_every == 0 or at_end:
                    _log_means(run, log)
                if epoch_done and (at_end or _epoch(run) % config.train.eval_every == 0):
                    _validate(run, log)
                if stop.exit_code or epoch_done or state.step % config.train.checkpoint_every == 0:
                    save_checkpoint(checkpoint_path(out, "last"), _tensors(run), _meta(run))
                ui.advance(state.step)
                if stop.exit_code and not at_end:
                    again = f"allspark train --out {out} --resume"
                    raise Interrupted(
                        f"stopped after step {state.step} of {run.total}; go on with: {again}", stop.exit_code
                    )
        finally:
            ui.end()
    return TrainResult(out, state.step, state.best, state.last)


def _update(run: _Run, batches: Iterator[TrainBatch]) -> None:
    """One weight update."""
    began = time.perf_counter()
    config, state = run.config, run.state
    progress = Progress(state.step, run.steps_per_epoch, run.total)
    set_lr(run.optimizer, config.optim, poly(state.step, run.total, config.optim.power))
    for part in range(config.optim.accumulate):
        batch = next(batches)
        for line in batch.skipped:
            run.ui.note(f"skipped: {line}")
        with run.accelerator.accumulate(run.wrapped):
            output: StepOutput = run.wrapped(_to_device(batch, run), progress)
            values = _values(output)
            if not math.isfinite(values["loss"]):
                ids = (*batch.labeled.ids, *(batch.unlabeled.ids if batch.unlabeled else ()))
                raise UserError(
                    f"the loss is {values['loss']} in step {state.step + 1} (images {', '.join(ids)}); the last "
                    f"checkpoint in {run.out} is good: resume with a lower optim.lr or with optim.clip_norm"
                )
            run.accelerator.backward(output.loss)
            if part == config.optim.accumulate - 1 and config.optim.clip_norm is not None:
                run.accelerator.clip_grad_norm_(run.method.parameters(), config.optim.clip_norm)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.count += 1
    run.method.after_step(progress)
    state.step += 1
    state.sums["time"] = state.sums.get("time", 0.0) + time.perf_counter() - began
    state.seconds += time.perf_counter() - began


def _log_means(run: _Run, log: RunLog) -> None:
    """Write the means since the last row."""
    state, data = run.state, run.config.data
    means = {name: total / state.count for name, total in state.sums.items() if name != "time"}
    images = state.count * (data.batch_labeled + data.batch_unlabeled * run.method.wants_unlabeled)
    row = {
        "step": state.step,
        "epoch": state.step / run.steps_per_epoch,
        **means,
        "lr": run.optimizer.param_groups[0]["lr"],
        "images_per_s": images * run.accelerator.num_processes / max(state.sums["time"], 1e-9),
        "seconds": state.seconds,
    }
    state.sums, state.count = {}, 0
    log.write(row)
    run.ui.row(row)


def _validate(run: _Run, log: RunLog) -> None:
    """Score the validation images; keep the network if it is the best so far."""
    state, config = run.state, run.config
    if not run.source.val:
        return
    scores = evaluate(
        Predictor(run.method.segmenter, config.eval, run.accelerator.device),
        run.source.val,
        run.source,
        workers=config.data.workers,
        max_pixels=config.data.max_pixels,
    )
    state.last = scores.miou
    best = state.best is None or scores.miou > state.best
    if best:
        state.best = scores.miou
        save_checkpoint(checkpoint_path(run.out, "best"), model_tensors(run.method.segmenter), _meta(run))
    row = {
        "step": state.step,
        "epoch": state.step / run.steps_per_epoch,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "best": best,
        "iou": scores.to_json(run.source.classes)["iou"],
    }
    log.write(row)
    run.ui.row(row)


def _prepare(config: Config, out: Path, checkpoint: Checkpoint | None, ui: TrainUI) -> _Run:
    """Open the data, build the network, and bring both to where the checkpoint stood."""
    config = config.model_copy(update={"model": resolve_encoder(config.model)})
    source = open_source(config.data)
    _fast_check(source, config, ui)
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)
    method = build_method(config, source.num_classes)
    if config.train.precision == "fp64":
        method.double()
    if method.wants_unlabeled and not source.unlabeled:
        raise DataError(
            f"{source.root}: no unlabelled image, which method {config.method.name} learns from; add images without "
            "masks, make lists with `allspark split`, or set method.name=supervised"
        )
    optimizer = build_optimizer(method, config.optim)
    wrapped, prepared = accelerator.prepare(method, optimizer)
    epoch = steps_per_epoch(source, config, accelerator.num_processes)
    total = max(1, math.ceil(config.train.epochs * epoch))
    run = _Run(config, out, source, accelerator, method, wrapped, prepared, _State(), epoch, total, ui)
    if checkpoint is not None:
        _restore(run, checkpoint)
    else:
        out.mkdir(parents=True, exist_ok=True)
        save_config(_absolute(config), out / "config.yaml")
    ui.note(
        f"{config.method.name} on {accelerator.device}: {len(source.labeled)} labelled, {len(source.unlabeled)} "
        f"unlabelled, {len(source.val)} validation images; {total} steps of {epoch} an epoch; writing to {out}"
    )
    if not source.val:
        ui.note("no validation images: the last checkpoint is the result")
    return run


def _absolute(config: Config) -> Config:
    """The configuration with the data set's place written out, so that it holds from any folder."""
    root = config.data.root
    assert root is not None
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root.resolve()})})


def _look_at(out: Path, resume: bool) -> Checkpoint | None:
    """Refuse to mix runs: a folder that holds one is resumed on request only."""
    path = checkpoint_path(out, "last")
    if resume:
        return load_checkpoint(path) if path.is_file() else None
    if path.is_file() or (out / "config.yaml").is_file():
        raise ConfigError(f"{out}: already holds a run; go on with --resume, or choose another --out")
    return None


def _fast_check(source: Source, config: Config, ui: TrainUI) -> None:
    """Stop before training on data that cannot be right."""
    report = check(
        source,
        crop=config.data.crop,
        max_pixels=config.data.max_pixels,
        workers=min(config.data.workers, os.cpu_count() or 1),
        fast=True,
    )
    errors = [finding for finding in report.findings if finding.level == "error"]
    # A run that is told to skip unreadable images learns from the others.
    if config.data.on_bad_image == "skip":
        errors = [finding for finding in errors if finding.kind != "unreadable"]
    if errors:
        more = f" ({len(errors) - 1} more kinds of errors)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{more}; run `allspark check {source.root}` for all of them")
    for line in (*source.notes, *(f.message for f in report.findings if f.level == "warning")):
        ui.note(f"note: {line}")


def _accelerator(config: Config) -> Accelerator:
    """Accelerate's view of the machine; a second run in one process may choose anew."""
    wanted, precision = config.train.device, config.train.precision
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but torch sees no GPU; use auto or cpu")
    on_cpu = wanted == "cpu" or not torch.cuda.is_available()
    if on_cpu and precision == "fp16":
        raise ConfigError("train.precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision=precision if precision in {"bf16", "fp16"} else "no",
        cpu=on_cpu,
        gradient_accumulation_steps=config.optim.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _batches(run: _Run) -> Any:
    return train_batches(
        run.source,
        run.config,
        start_step=run.state.step,
        total_steps=run.total,
        want_unlabeled=run.method.wants_unlabeled,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
        pin_memory=run.accelerator.device.type == "cuda",
    )


def _to_device(batch: TrainBatch, run: _Run) -> TrainBatch:
    batch = batch.to(run.accelerator.device, non_blocking=True)
    return batch.with_images(torch.float64) if run.config.train.precision == "fp64" else batch


def _values(output: StepOutput) -> dict[str, float]:
    """The step's scalars, in one transfer from the device."""
    names = ["loss", *output.metrics]
    stacked: Tensor = torch.stack([output.loss.detach().double(), *(x.double() for x in output.metrics.values())])
    return dict(zip(names, stacked.tolist(), strict=True))


def _epoch(run: _Run) -> int:
    return run.state.step // run.steps_per_epoch


def _meta(run: _Run) -> dict[str, Any]:
    return {**describe(_absolute(run.config), run.source), "state": asdict(run.state)}


def _tensors(run: _Run) -> dict[str, Tensor]:
    """Network, method state, momentum and random states."""
    tensors = model_tensors(run.method.segmenter)
    for name, tensor in run.method.state_dict().items():
        if not name.startswith("segmenter."):
            tensors[f"method.{name}"] = tensor
    names = {id(parameter): name for name, parameter in run.method.named_parameters()}
    for parameter, memory in run.optimizer.state.items():
        if memory.get("momentum_buffer") is not None:
            tensors[f"momentum.{names[id(parameter)]}"] = memory["momentum_buffer"]
    tensors["rng.cpu"] = torch.get_rng_state()
    if run.accelerator.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(run.accelerator.device)
    return tensors


def _restore(run: _Run, checkpoint: Checkpoint) -> None:
    """Take everything back from a checkpoint; refuse one of another experiment."""
    path = checkpoint_path(run.out, "last")
    changed = sorted(_differences(checkpoint.meta["config"], _absolute(run.config).model_dump(mode="json")))
    if changed:
        name, old, new = changed[0]
        raise ConfigError(f"{path}: cannot be resumed with {name} = {new}, it was trained with {old}")
    load_model(run.method.segmenter, checkpoint, path)
    try:
        run.method.load_state_dict(checkpoint.part("method."), strict=False)
        named = dict(run.method.named_parameters())
        for name, buffer in checkpoint.part("momentum.").items():
            run.optimizer.state[named[name]]["momentum_buffer"] = buffer.to(named[name])
        torch.set_rng_state(checkpoint.tensors["rng.cpu"])
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing; it cannot be resumed") from error
    if run.accelerator.device.type == "cuda" and "rng.cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng.cuda"], run.accelerator.device)
    run.state = _State(**checkpoint.meta["state"])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in {*old, *new}:
        name, a, b = prefix + key, old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and name != "model.encoder_config":
            yield from _differences(a, b, f"{name}.")
        elif a != b and name not in _FREE:
            yield name, a, b
