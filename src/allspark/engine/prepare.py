"""What a run begins with: its data, looked at; its method, with the weights to begin or to go on with."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError

from allspark.batch import Views
from allspark.config.schema import Config, DataConfig
from allspark.data.check import check
from allspark.data.partitions import partition_of
from allspark.data.pseudo import with_pseudo
from allspark.data.sets import open_source
from allspark.data.source import Source
from allspark.engine.checkpoint import Checkpoint
from allspark.engine.recorder import RunState
from allspark.engine.resolve import Note
from allspark.engine.run import begin_with, load_method
from allspark.errors import CheckpointError, ConfigError, DataError
from allspark.methods import build_method
from allspark.methods.base import Method
from allspark.models.licences import weights_of
from allspark.models.segmenter import Segmenter


def open_checked(data: DataConfig, views: Views, note: Note) -> Source:
    """Open the data set, and stop before training on data that cannot be right.

    Args:
        data: where the images are and how they are read.
        views: what the method asks for by default; one that wants no labels needs no labelled image.
        note: called with lines that the user should know.

    Raises:
        DataError: what is wrong with it, the worst kind first.
    """
    source = open_source(data, require_labels=views.labeled is not None)
    if views.pseudo:
        source = with_pseudo(source, data.pseudo)
    report = check(
        source,
        crop=data.crop,
        max_pixels=data.max_pixels,
        workers=min(data.workers, os.cpu_count() or 1),
        fast=True,
    )
    # A run that is told to skip unreadable images learns from the others, and some need no labels.
    passed_over = {"unreadable"} if data.on_bad_image == "skip" else set()
    passed_over |= {"no-labeled"} if views.labeled is None else set()
    passed_over |= set() if views.unlabeled else {"no-unlabeled"}
    errors = [finding for finding in report.findings if finding.level == "error" and finding.kind not in passed_over]
    if errors:
        more = f" ({len(errors) - 1} more kinds of errors)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{more}; run `allspark check {source.root}` for all of them")
    for line in (*source.notes, *(f.message for f in report.findings if f.level == "warning")):
        note(f"note: {line}")
    return source


def build_method_of(
    config: Config, source: Source, checkpoint: Checkpoint | None, path: Path, note: Note
) -> tuple[Method, RunState]:
    """The method with the weights that it begins with, or goes on with; and where the run stands.

    Args:
        config: resolved.
        source: the data set.
        checkpoint: what the run goes on from; None: it begins.
        path: the checkpoint's file, for messages.
        note: called with lines that the user should know.

    Raises:
        UserError: the network cannot be built, or weights are missing or do not fit.
    """
    building = config
    if checkpoint is not None:
        # All weights come from the checkpoint: the hub or the file that the run began with need not be at hand.
        building = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": "none"})})
    torch.manual_seed(config.seed)
    method = build_method(building, source.num_classes)
    if checkpoint is not None:
        if config.train.precision == "fp64":
            method.double()
        load_method(method, checkpoint, path)
        try:
            return method, TypeAdapter(RunState).validate_python(checkpoint.said("state", path))
        except ValidationError as error:
            raise CheckpointError(f"{path}: where the run stood cannot be read ({error.errors()[0]['msg']})") from error
    _require_partners(method, config.data, note)
    weights = weights_of(config.model)
    if config.train.begin_with is not None:
        said, weights = begin_with(method, config.train.begin_with)
        note(said)
    state = RunState(initial=_checksum(method.networks()[0]))
    if weights is not None:
        note(f"note: the encoder begins with {weights}")
        state.weights = weights.to_json()
        if config.model.deep_stem:
            note("note: model.deep_stem: its three convolutions are new, none of these weights are for them")
    if config.train.precision == "fp64":
        method.double()
    method.name_classes(source.classes)
    method.begin()
    return method, state


def _require_partners(method: Method, data: DataConfig, note: Note) -> None:
    """Refuse, or say, that an unlabelled image is alone in its micro-batch where a method needs another one."""
    if data.batch_unlabeled > 1:
        return
    name, views = method.settings.model_fields["name"].default, method.views
    if views.compared:
        raise ConfigError(
            f"data.batch_unlabeled: {name} compares the unlabelled images of a micro-batch, and needs two or more, "
            "got 1"
        )
    if views.boxes is not None and not views.partner:
        note(f"note: with data.batch_unlabeled=1 {name} has no other image to mix with")


def _checksum(network: Segmenter) -> str:
    """Of encoder and decoder: what all methods have in common."""
    total = 0
    for part in (network.encoder, network.decoder):
        for tensor in part.state_dict().values():
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def what_begins(config: Config, source: Source, out: Path, accelerator: Accelerator, length: str) -> str:
    """One line for the user: what is trained, where, on how many images, and how long."""
    partition, processes = partition_of(config.data.source, source), accelerator.num_processes
    several = f", {processes} processes" if processes > 1 else ""
    pseudo = f"{len(source.pseudo)} pseudo-labelled, " if source.pseudo else ""
    published = f" (the published partition {partition})" if partition else ""
    return (
        f"{config.method.name} on {accelerator.device.type}{several}: {len(source.labeled)} labelled, "
        f"{len(source.unlabeled)} unlabelled, {pseudo}{len(source.val)} validation images{published}; {length}; "
        f"writing to {out}"
    )
