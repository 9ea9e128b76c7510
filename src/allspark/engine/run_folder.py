"""The folder of a run: claimed by one process, never mixed with another run, taken up again only as it was."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

from allspark.config.files import apply_overrides, differences
from allspark.config.schema import Config
from allspark.data.shards import Shards
from allspark.data.source import Sample, Source
from allspark.engine.checkpoint import Checkpoint, checkpoint_path, load_checkpoint
from allspark.engine.ui import Silent, TrainUI
from allspark.errors import CheckpointError, ConfigError
from allspark.files import lock_folder
from allspark.runtime.collectives import world_size

# Settings that a resumed run may change: where and how it runs, or what it does about trouble. (What the lists of
# images hold is compared by itself, see _require_same_images.)
_FREE = {
    *("data.root", "data.source", "data.split", "data.labeled", "data.unlabeled", "data.val", "data.workers"),
    *("data.keep_decoded", "model.activation_checkpointing"),
    *("data.max_pixels", "data.on_bad_image", "model.pretrained", "optim.clip_norm", "eval.batch"),
    *(
        "train.device",
        "train.shard",
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.health_images",
    ),
    *("train.keep_every", "train.on_nan", "train.begin_with"),
}


_OWN = ("config.yaml", "checkpoints", "log.jsonl", ".lock", "output.txt")


def claim(out: Path) -> IO[str]:
    """Make the folder of the run, and keep other processes from it until the returned file is closed.

    Raises:
        ConfigError: another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        return lock_folder(out)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            raise
        raise ConfigError(
            f"{out}: another process is training in this folder; wait for it, or choose another --out"
        ) from error


def look_at(out: Path, resume: bool) -> Checkpoint | None:
    """Refuse to mix runs: a folder that holds one is resumed on request only.

    Returns:
        The checkpoint to go on from; None: there is none (yet), the run starts at step 0.

    Raises:
        ConfigError: there is a run, but ``resume`` is False; or ``out`` is a file, or a folder of something else.
        CheckpointError: the run's checkpoint is damaged or gone.
    """
    require_own(out)
    path = checkpoint_path(out, "last")
    if resume and path.is_file():
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_way_out(out)}") from error
        if not {"state", "images", "config"} <= checkpoint.meta.keys():
            raise CheckpointError(f"{path}: holds no state of a training; start a new run with another --out")
        return checkpoint
    best = checkpoint_path(out, "best")
    if resume and best.is_file():
        raise CheckpointError(
            f"{path}: gone, though {best} is there; bring it back, or start a new run with another --out"
        )
    if not resume and (path.is_file() or best.is_file()):
        raise ConfigError(f"{out}: already holds a run; go on with --resume, or choose another --out")
    return None


def _way_out(out: Path) -> str:
    """What can be done when a run's last checkpoint is damaged: the best of the others that are whole."""
    best = checkpoint_path(out, "best")
    for path in (*sorted(best.parent.glob("step-*.safetensors"), reverse=True), best):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError:
            continue  # missing or damaged as well: the next one
        step = checkpoint.meta["state"]["step"]
        if path == best:
            return f"; {path} of step {step} is whole: a new run can begin with it (train.begin_with)"
        return f"; {path} of step {step} is whole: copy it to last.safetensors to go on from there"
    return ""


def same_update(config: Config, then: int, now: int, ui: TrainUI) -> Config:
    """A configuration for another number of processes whose updates have the same images.

    Fewer micro-batches make up for more processes, else smaller ones do.

    Raises:
        ConfigError: that does not come out even.
    """
    if then == now:
        return config
    data, accumulate = config.data, config.optim.accumulate
    parts = {"optim.accumulate": accumulate, "data.batch_labeled": data.batch_labeled}
    parts["data.batch_unlabeled"] = data.batch_unlabeled
    if accumulate * then % now == 0:
        changed = {"optim.accumulate": accumulate * then // now}
    else:
        changed = {name: size * then // now for name, size in parts.items() if name != "optim.accumulate"}
        if any(parts[name] * then != size * now for name, size in changed.items()):
            had = ", ".join(f"{name}={value}" for name, value in parts.items())
            raise ConfigError(
                f"the run was trained by {then} process{'es' * (then > 1)} with {had}: {now} cannot have updates "
                "of the same size; resume with another number of processes"
            )
    what = ", ".join(f"{name} {parts[name]} -> {size}" for name, size in changed.items())
    ui.note(
        f"note: goes on with {now} process{'es' * (now > 1)}, before there were {then}: {what}. An update has the same "
        "images; dropout and rounding differ"
    )
    return apply_overrides(config, [f"{name}={size}" for name, size in changed.items()])


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


def sweep(out: Path) -> None:
    """Remove the temporary files of writes that a killed run left unfinished."""
    for folder in (out, out / "checkpoints"):
        for debris in folder.glob(".*.tmp"):
            debris.unlink(missing_ok=True)


def absolute(config: Config) -> Config:
    """The configuration with the data set's place written out, so that it holds from any folder."""
    root = config.data.root
    assert root is not None
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root.resolve()})})


def fingerprints(source: Source) -> dict[str, list[int]]:
    """Number and checksum of the names of each list of images."""
    lists = {"labeled": source.labeled, "unlabeled": source.unlabeled, "val": source.val}
    return {name: [len(samples), _fingerprint(samples)] for name, samples in lists.items()}


def _fingerprint(samples: Sequence[Sample]) -> int:
    if isinstance(samples, Shards):
        return samples.fingerprint
    return zlib.crc32("\n".join(sample.id for sample in samples).encode("utf-8", "surrogateescape"))


def require_same_images(checkpoint: Checkpoint, source: Source, path: Path) -> None:
    """Refuse to go on with other images: the stream of batches would not be the one that the run began with."""
    for name, found in fingerprints(source).items():
        then = checkpoint.meta["images"][name]
        if found != then:
            raise ConfigError(
                f"{path}: cannot be resumed, data.{name} held {then[0]} images and holds {found[0]} now"
                f"{', others' * (found[0] == then[0])}; restore the old list or start a new run with another --out"
            )


def require_same(checkpoint: Checkpoint, config: Config, out: Path, ui: TrainUI) -> None:
    """Refuse to go on with settings that would make it another experiment."""
    then = Config.model_validate(checkpoint.meta["config"])
    before, now = checkpoint.meta.get("processes", 1), world_size()
    for name, old, new in differences(same_update(then, before, now, Silent()), absolute(config)):
        if name not in _FREE:
            raise ConfigError(
                f"{checkpoint_path(out, 'last')}: cannot be resumed with {name} = {new}, it was trained with {old}; "
                "take the old value, or start a new run with another --out"
            )
        ui.note(f"note: goes on with {name} = {new}, before it was {old}")
