"""Checkpoints: one safetensors file each, written whole or not at all, verified when read, never executed."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from allspark.config.schema import Config
from allspark.data.source import RGB, Source
from allspark.errors import CheckpointError
from allspark.files import atomic_path
from allspark.models.segmenter import Segmenter, build_segmenter

FORMAT = 1
_MODEL = "model."


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: named tensors, and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Run:
    """A trained network with all that is needed to use it."""

    segmenter: Segmenter
    config: Config
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    checkpoint: Literal["best", "last"]
    meta: dict[str, Any]


def checkpoint_path(run: Path, which: Literal["best", "last"]) -> Path:
    """Where a run keeps a checkpoint."""
    return run / "checkpoints" / f"{which}.safetensors"


def kept_path(run: Path, step: int) -> Path:
    """Where a run keeps a checkpoint that is never replaced (train.keep_every)."""
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def describe(config: Config, source: Source) -> dict[str, Any]:
    """The part of a checkpoint's meta data that says what the network is."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
        "classes": list(source.classes),
        "palette": [list(colour) for colour in source.palette],
    }


def model_tensors(segmenter: Segmenter) -> dict[str, Tensor]:
    """The network's tensors under the names that checkpoints give them."""
    return {_MODEL + name: tensor for name, tensor in segmenter.state_dict().items()}


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older one at ``path`` stays whole until the new one is on disk.

    Raises:
        OSError: the disk is full or the folder cannot be written to; the older checkpoint is intact.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(meta))
    header = {"allspark": text, "crc32": str(_checksum(plain, text))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(plain, temporary, header)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        kept = "; the previous checkpoint is intact" if path.is_file() else ""
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise OSError(
            getattr(error, "errno", errno.EIO), f"could not be written ({reason}){kept}", str(path)
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, truncated, altered or none of ours; the message names it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            # Copies: the tensors of safetensors are windows on the file, and change with it when it is written over.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({' '.join(str(error).split())[:100]})"
        ) from error
    text = header.get("allspark")
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of this program")
    if header.get("crc32") != str(_checksum(tensors, text)):
        raise CheckpointError(f"{path}: altered or damaged (its checksum differs); use another checkpoint of the run")
    try:
        meta = json.loads(text)
        found = meta["format"]
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found}, this version reads format {FORMAT}")
    return Checkpoint(tensors, meta)


def open_run(run: Path, which: Literal["best", "last"] = "best") -> Run:
    """Open a trained network for evaluation or prediction.

    Args:
        run: folder that `train` or `import-checkpoint` wrote.
        which: the best checkpoint by validation mIoU, or the last one (also taken where there is no best).

    Raises:
        CheckpointError: no run, or its checkpoint is damaged or does not fit.
    """
    path = checkpoint_path(run, which)
    if which == "best" and not path.is_file():
        which, path = "last", checkpoint_path(run, "last")
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run (no {checkpoint_path(run, 'last')}); give the folder of `train --out`")
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    try:
        config = Config.model_validate(meta["config"])
    except ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: this version does not know its configuration ({reason})") from error
    segmenter = build_segmenter(config, len(meta["classes"]), load_weights=False)
    load_model(segmenter, checkpoint, path)
    palette = tuple((r, g, b) for r, g, b in meta["palette"])
    return Run(segmenter.eval(), config, tuple(meta["classes"]), palette, which, meta)


def load_model(segmenter: Segmenter, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's tensors into a network.

    Raises:
        CheckpointError: the class count or another size differs.
    """
    found = len(checkpoint.meta["classes"])
    if found != segmenter.num_classes:
        raise CheckpointError(f"{path}: trained for {found} classes, but the data set has {segmenter.num_classes}")
    try:
        segmenter.load_state_dict(checkpoint.part(_MODEL))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit the network of its configuration ({reason})") from error


def begin_with(segmenter: Segmenter, where: Path) -> str:
    """Take the weights of an earlier run: the encoder whole, and whatever else has the same name and shape.

    So a supervised run can be the beginning of a semi-supervised one, whose bottleneck it does not have, and a network
    for other classes the beginning of this one. The semantic memory is not taken: it belongs to other images.

    Args:
        segmenter: the network to begin with; its other weights stay as they were drawn.
        where: folder of the run, whose last checkpoint is read, or a checkpoint file.

    Returns:
        One line that says what was taken.

    Raises:
        CheckpointError: no checkpoint, or another encoder.
    """
    path = where if where.is_file() else checkpoint_path(where, "last")
    theirs = load_checkpoint(path).part(_MODEL)
    own = segmenter.state_dict()
    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in own and own[name].shape == tensor.shape and not name.startswith("bottleneck.memory.")
    }
    missing = [name for name in own if name.startswith("encoder.") and name not in fitting]
    if missing:
        raise CheckpointError(
            f"{path}: its encoder is another one ({missing[0]} does not fit); set model.encoder as it was there"
        )
    segmenter.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting and not name.startswith("bottleneck.memory.")]
    parts = sorted({".".join(name.split(".")[:2]) for name in left})
    return f"begins with the weights of {path}" + (f"; drawn anew: {', '.join(parts)}" if parts else "")


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
