"""The folder of a run: claimed by one process, never mixed with another run, each file whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from allspark.config.files import load_config, save_config
from allspark.config.schema import Config
from allspark.data.shards import Shards
from allspark.data.source import Sample, Source
from allspark.engine.checkpoint import (
    Checkpoint,
    checkpoint_path,
    kept_checkpoints,
    kept_path,
    load_checkpoint,
    save_checkpoint,
)
from allspark.engine.sinks import read_log
from allspark.errors import CheckpointError, ConfigError
from allspark.files import atomic_path, atomic_write, lock_folder

_OWN = ("config.yaml", "checkpoints", "log.jsonl", ".lock", "output.txt")


class RunFolder:
    """Where a run keeps its configuration, its log and its checkpoints.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = checkpoint_path(path, "last")
        self.best = checkpoint_path(path, "best")
        self.result = path / "result.json"

    def find_checkpoint(self, resume: bool) -> Checkpoint | None:
        """Refuse to mix runs: a folder that holds one is resumed on request only.

        Returns:
            The checkpoint to go on from; None: there is none (yet), the run starts at step 0.

        Raises:
            ConfigError: there is a run, but ``resume`` is False; or it is a file, or a folder of something else.
            CheckpointError: the run's checkpoint is damaged or gone.
        """
        require_own(self.path)
        if resume and self.last.is_file():
            try:
                checkpoint = load_checkpoint(self.last)
            except CheckpointError as error:
                raise CheckpointError(f"{error}{self._way_out()}") from error
            if not {"state", "images", "config"} <= checkpoint.meta.keys():
                raise CheckpointError(f"{self.last}: holds no state of a training; start a new run with another --out")
            return checkpoint
        told = read_log(self.path)
        if not resume and (told or self._checkpoints() or self.result.is_file()):
            raise ConfigError(f"{self.path}: already holds a run; go on with --resume, or choose another --out")
        if resume and (self._checkpoints() or self.result.is_file() or self._had_checkpoint(told)):
            there = self._way_out() or "; no other is there"
            raise CheckpointError(
                f"{self.last}: gone{there}; bring it back, or start a new run with another --out; nothing was changed"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        return [path for path in (self.last, self.best, *kept_checkpoints(self.path)) if path.is_file()]

    def _had_checkpoint(self, told: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the log goes beyond the step that the first checkpoint was due at."""
        try:
            every = load_config(self.path / "config.yaml").train
        except ConfigError:
            return bool(told)
        due = min(every.checkpoint_every, every.keep_every or every.checkpoint_every)
        return any(row["step"] > due or row["epoch"] > 1 for row in told)

    def _way_out(self) -> str:
        """What can be done when the last checkpoint is damaged: the best of the others that are whole."""
        for path in (*reversed(kept_checkpoints(self.path)), self.best):
            try:
                checkpoint = load_checkpoint(path)
            except CheckpointError:
                continue  # missing or damaged as well: the next one
            step = checkpoint.meta["state"]["step"]
            if path == self.best:
                return f"; {path} of step {step} is whole: a new run can begin with it (train.begin_with)"
            return f"; {path} of step {step} is whole: copy it to last.safetensors to go on from there"
        return ""

    @contextmanager
    def claimed(self, config: Config) -> Iterator[None]:
        """Make the folder, keep other processes from it for a while, and write the configuration into it.

        Raises:
            ConfigError: another process trains there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(self.path)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            raise ConfigError(
                f"{self.path}: another process is training in this folder; wait for it, or choose another --out"
            ) from error
        with lock:
            save_config(config, self.path / "config.yaml")
            self._remove_temporary_files()
            yield

    def _remove_temporary_files(self) -> None:
        """Of writes that a killed run left unfinished."""
        for folder in (self.path, self.last.parent):
            for debris in folder.glob(".*.tmp"):
                debris.unlink(missing_ok=True)

    def save(
        self,
        which: Literal["last", "best"],
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        keep: int | None = None,
    ) -> None:
        """Write a checkpoint.

        Args:
            which: the one to write.
            tensors: by their names in checkpoints.
            meta: the JSON-able rest.
            keep: a step, whose copy is never replaced (train.keep_every); None: no copy.

        Raises:
            OSError: it could not be written; the one before is intact.
        """
        path = checkpoint_path(self.path, which)
        if keep is None:
            save_checkpoint(path, tensors, meta)
            return
        # A run that is killed between the two goes on from an earlier step and writes both again.
        save_checkpoint(kept_path(self.path, keep), tensors, meta)
        with atomic_path(path) as copy:
            shutil.copyfile(kept_path(self.path, keep), copy)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which says that the run is finished."""
        with atomic_write(self.result, "w") as file:
            json.dump(result, file, indent=2)


def require_own(out: Path, own: Collection[str] = _OWN) -> None:
    """Refuse a folder that holds files, but none of this program's.

    Args:
        out: the folder, which need not exist.
        own: names, one of which is there if the folder is this program's.

    Raises:
        ConfigError: what is there instead.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: a file, but a folder is needed; choose another --out")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if names and not set(own) & set(names):
        raise ConfigError(f"{out}: holds other files ({names[0]}, ...); give a new or an empty folder with --out")


def fingerprints(source: Source) -> dict[str, list[int]]:
    """Number and checksum of the names of each list of images; of pseudo masks also their files' sizes."""
    lists = {"labeled": source.labeled, "unlabeled": source.unlabeled, "val": source.val}
    found = {name: [len(samples), _fingerprint(samples)] for name, samples in lists.items()}
    if source.pseudo:  # other masks of the same images would be other data
        sizes = "".join(f"{sample.id} {os.path.getsize(sample.mask)}\n" for sample in source.pseudo if sample.mask)
        found["pseudo"] = [len(source.pseudo), zlib.crc32(sizes.encode("utf-8", "surrogateescape"))]
    return found


def _fingerprint(samples: Sequence[Sample]) -> int:
    if isinstance(samples, Shards):
        return samples.fingerprint
    return zlib.crc32("\n".join(sample.id for sample in samples).encode("utf-8", "surrogateescape"))


def require_same_images(checkpoint: Checkpoint, source: Source, path: Path) -> None:
    """Refuse to go on with other images: the stream of batches would not be the one that the run began with."""
    for name, found in fingerprints(source).items():
        then = checkpoint.said("images", path).get(name, [0, 0])
        if found != then:
            raise ConfigError(
                f"{path}: cannot be resumed, data.{name} held {then[0]} images and holds {found[0]} now"
                f"{', others' * (found[0] == then[0])}; restore the old list or start a new run with another --out"
            )
