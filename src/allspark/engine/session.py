"""All that a run works with."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from allspark.config.files import save_config
from allspark.config.schema import Config, OptimConfig
from allspark.data.check import check
from allspark.data.partitions import partition_of
from allspark.data.sets import open_source
from allspark.data.source import Source
from allspark.data.stream import steps_per_epoch
from allspark.engine.checkpoint import (
    Checkpoint,
    begin_with,
    checkpoint_path,
    load_model,
)
from allspark.engine.optim import build_optimizer
from allspark.engine.run_folder import (
    absolute,
    look_at,
    require_same,
    same_update,
    sweep,
)
from allspark.engine.state import State, process_seed, restore
from allspark.engine.ui import TrainUI
from allspark.errors import ConfigError, DataError
from allspark.kernels.batch_norm import synchronise_norms
from allspark.methods import build_method
from allspark.methods.base import Method
from allspark.models.encoders import freeze_unused, resolve_encoder
from allspark.runtime.agreement import fail_together
from allspark.runtime.devices import require_compiler
from allspark.runtime.sharding import shard


@dataclass
class Session:
    """Everything that one call of :func:`allspark.engine.train.train` works with."""

    config: Config
    out: Path
    source: Source
    accelerator: Accelerator
    method: Method  # bare, for its state
    wrapped: Any  # for its forward pass
    optimizer: torch.optim.Optimizer
    optim: OptimConfig  # with the learning rate as it is used
    state: State
    steps_per_epoch: int
    total: int
    ui: TrainUI
    # Scalars that are still on the device: step, ids of the images, names, values (len(names),).
    unread: list[tuple[int, tuple[str, ...], tuple[str, ...], Tensor]] = field(default_factory=list)
    class_pixels: dict[str, Tensor] = field(default_factory=dict)  # those of the unread steps, (k,)
    watched: NDArray[np.uint8] | None = None  # pseudo-labels of the watched images at the last validation

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files and talks to the user."""
        return bool(self.accelerator.is_main_process)


def open_session(config: Config, out: Path, resume: bool, accelerator: Accelerator, ui: TrainUI) -> Session:
    """Open the data, build the network, and bring both to where the run's checkpoint stood.

    Raises:
        UserError: see :func:`allspark.engine.train.train`.
    """
    with fail_together():
        if config.train.compile:
            require_compiler(accelerator.device)
        checkpoint = look_at(out, resume)
        session = _build(config, out, checkpoint, accelerator, ui)
    if accelerator.num_processes > 1:
        freeze_unused(session.method.segmenter.encoder)
    synchronise_norms(session.method, accelerator.device)
    if config.train.compile:
        session.method.segmenter.compile_parts()
    if config.train.shard and accelerator.num_processes > 1:
        session.method.to(accelerator.device)
        shard(session.method.segmenter, accelerator.device)
        session.optimizer = accelerator.prepare(build_optimizer(session.method, session.optim))
        session.wrapped = _in_precision(session.method, accelerator)
    else:
        session.wrapped, session.optimizer = accelerator.prepare(session.method, session.optimizer)
    with fail_together():
        if checkpoint is not None:
            restore(session, checkpoint)
        elif not session.main:  # dropout must not be the same in all processes
            torch.manual_seed(process_seed(config.seed, accelerator.process_index))
    return session


def _in_precision(method: Method, accelerator: Accelerator) -> Any:
    """The method's step in the mixed precision of the run, as accelerate does for what it wraps itself."""

    def forward(*arguments: Any) -> Any:
        with accelerator.autocast():
            return method(*arguments)

    return forward


def _build(config: Config, out: Path, checkpoint: Checkpoint | None, accelerator: Accelerator, ui: TrainUI) -> Session:
    """Everything that needs no other process."""
    config = config.model_copy(update={"model": resolve_encoder(config.model)})
    if checkpoint is not None:
        config = same_update(config, checkpoint.meta.get("processes", 1), accelerator.num_processes, ui)
    building = config
    if checkpoint is not None:
        require_same(checkpoint, config, out, ui)
        # All weights come from the checkpoint: the hub or the file that the run began with need not be at hand.
        building = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": "none"})})
    source = open_source(config.data)
    _fast_check(source, config, ui)
    if config.train.shard and config.train.precision == "fp16":
        raise ConfigError("train.shard does not go with train.precision fp16; use bf16")
    if config.train.shard and config.train.compile:
        raise ConfigError("train.shard does not go with train.compile; set one of them to false")
    torch.manual_seed(config.seed)
    method = build_method(building, source.num_classes)
    if checkpoint is None and config.train.begin_with is not None:
        ui.note(begin_with(method.segmenter, config.train.begin_with))
    initial = _checksum(method)
    if config.train.precision == "fp64":
        method.double()
    if checkpoint is not None:
        load_model(method.segmenter, checkpoint, checkpoint_path(out, "last"))
    if method.wants_unlabeled and not source.unlabeled:
        raise DataError(
            f"{source.root}: no unlabelled image, which method {config.method.name} learns from; add images without "
            "masks, make lists with `allspark split`, or set method.name=supervised"
        )
    optim = _scaled(config, accelerator.num_processes, ui)
    optimizer = build_optimizer(method, optim)
    epoch = steps_per_epoch(source, config, accelerator.num_processes)
    total = max(1, math.ceil(config.train.epochs * epoch))
    return Session(
        config, out, source, accelerator, method, method, optimizer, optim, State(initial=initial), epoch, total, ui
    )


def begin_record(session: Session) -> None:
    """Write the configuration into the run's folder, which is claimed by now, and say what begins."""
    config, source, out, ui = session.config, session.source, session.out, session.ui
    save_config(absolute(config), out / "config.yaml")
    sweep(out)
    partition = partition_of(config.data.source, source)
    processes = session.accelerator.num_processes
    several = f", {processes} processes" if processes > 1 else ""
    ui.note(
        f"{config.method.name} on {session.accelerator.device.type}{several}: {len(source.labeled)} labelled, "
        f"{len(source.unlabeled)} unlabelled, {len(source.val)} validation images"
        f"{f' (the published partition {partition})' if partition else ''}; {session.total} steps of "
        f"{session.steps_per_epoch} an epoch; writing to {out}"
    )
    if not source.val:
        ui.note("no validation images: the last checkpoint is the result")


def _scaled(config: Config, processes: int, ui: TrainUI) -> OptimConfig:
    """The learning rate for the images that an update has, all processes together."""
    optim, data = config.optim, config.data
    images = (data.batch_labeled + data.batch_unlabeled) * optim.accumulate * processes
    if optim.lr_batch in (None, images):
        return optim
    lr = optim.lr * images / optim.lr_batch
    ui.note(f"note: {images} images an update, optim.lr {optim.lr:g} is meant for {optim.lr_batch}: {lr:g} is used")
    return optim.model_copy(update={"lr": lr})


def _checksum(method: Method) -> str:
    """Of encoder and decoder: what all methods have in common."""
    total = 0
    for part in (method.segmenter.encoder, method.segmenter.decoder):
        for tensor in part.state_dict().values():
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


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
