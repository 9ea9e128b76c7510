"""Checkpoints: one safetensors file each, written whole or not at all, verified when read, never executed."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from allspark.errors import CheckpointError, NotFiniteError
from allspark.files import atomic_path

FORMAT = 2
"""1: version 0.1, whose configuration and optimiser state had other names; it is still read."""
_READABLE = (1, FORMAT)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: named tensors, and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def said(self, name: str, path: Path) -> Any:
        """Return a part of the description.

        Raises:
            CheckpointError: ``path``, the checkpoint, does not have it.
        """
        if name not in self.meta:
            raise CheckpointError(f"{path}: says nothing of its {name}; use another checkpoint")
        return self.meta[name]


class _State(BaseModel):
    """Of a :class:`allspark.engine.recorder.RunState`, which is read whole by who goes on with it."""

    model_config = ConfigDict(extra="allow")
    step: Annotated[int, Field(ge=0)]


def _shown(name: str) -> str:
    if not name or not name.isprintable():
        raise ValueError(f"{name!r} is no name")
    return name


class _Meta(BaseModel):
    """What a checkpoint may say of itself. Whoever needs a part of it asks for it with :meth:`Checkpoint.said`."""

    model_config = ConfigDict(extra="allow", strict=True)
    format: int
    config: dict[str, Any] = {}
    classes: Annotated[list[Annotated[str, AfterValidator(_shown)]], Field(min_length=1, max_length=255)] = []
    palette: list[Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]] = []
    images: dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]] = {}
    processes: Annotated[int, Field(ge=1)] = 1
    state: _State | None = None
    scaler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _a_colour_each(self) -> Self:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes and {len(self.palette)} colours")
        return self


def checkpoint_path(run: Path, which: Literal["best", "last"]) -> Path:
    """Where a run keeps a checkpoint."""
    return run / "checkpoints" / f"{which}.safetensors"


def kept_path(run: Path, step: int) -> Path:
    """Where a run keeps a checkpoint that is never replaced (train.keep_every)."""
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def kept_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that are never replaced, in the order of their steps."""
    return sorted(kept_path(run, 0).parent.glob("step-*.safetensors"))


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older one at ``path`` stays whole until the new one is on disk.

    Raises:
        NotFiniteError: a tensor is not finite; the older checkpoint is intact.
        OSError: the disk is full or the folder cannot be written to; the older checkpoint is intact.
    """
    if broken := _not_finite(tensors):
        raise NotFiniteError(f"{path}: not written, since {broken!r} is not finite")
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
        CheckpointError: it is missing, truncated, altered, none of ours, or holds what is not finite; the message names
            it.
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
        meta = _Meta.model_validate_json(text).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise CheckpointError(f"{path}: its description cannot be read ({where}: {first['msg']})") from error
    if meta["format"] not in _READABLE:
        raise CheckpointError(f"{path}: format {meta['format']}, this version reads formats up to {FORMAT}")
    if broken := _not_finite(tensors):
        raise CheckpointError(
            f"{path}: {broken!r} is not finite, training went wrong; use another checkpoint of the run"
        )
    return Checkpoint(tensors, meta)


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds something infinite or not a number."""
    return next((name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()), None)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
