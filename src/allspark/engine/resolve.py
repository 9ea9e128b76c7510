"""A run's configuration, resolved once, before anything is built: nothing is left to be filled in later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from allspark.batch import Views
from allspark.config.fields import is_free
from allspark.config.files import apply_overrides, differences
from allspark.config.keys import keys
from allspark.config.resolve import images_per_update, network_config, require_memory, scaled_lr
from allspark.config.schema import Config, ModelConfig
from allspark.data.pseudo import find_list
from allspark.engine.checkpoint import Checkpoint
from allspark.engine.run import saved_config
from allspark.errors import ConfigError
from allspark.models.encoder_config import TAP_FIELDS, has_taps
from allspark.models.encoders import resolve_encoder

Note = Callable[[str], None]


def resolve(config: Config, world: int, note: Note) -> Config:
    """Write everything out: the encoder, the bottleneck, the learning rate of this many images, the place of the data.

    To resolve the result again changes nothing.

    Args:
        config: as the user gives it; ``data.root`` is set.
        world: number of processes.
        note: called with lines that the user should know.

    Raises:
        ConfigError: settings that exclude each other.
        CheckpointError: the configuration of an encoder of the hub cannot be had.
    """
    train, root = config.train, config.data.root
    if train.shard and train.precision == "fp16":
        raise ConfigError("train.shard does not go with train.precision fp16; use bf16")
    if train.shard and train.compile:
        raise ConfigError("train.shard does not go with train.compile; set one of them to false")
    if root is None:
        raise ConfigError("data.root is not set: say where the images are with --data DIR")
    images = images_per_update(config.data, config.optim.accumulate, world, Views())
    optim = scaled_lr(config.optim, images)
    if optim.lr != config.optim.lr:
        note(
            f"note: {images} images an update, optim.lr {config.optim.lr:g} is meant for {config.optim.lr_batch}: "
            f"{optim.lr:g} is used"
        )
    if config.model.freeze_encoder and config.model.pretrained == "none" and train.begin_with is None:
        note("note: model.freeze_encoder leaves the encoder at the random weights that model.pretrained=none gives it")
    elif config.model.freeze_encoder and config.model.deep_stem and train.begin_with is None:
        note("note: model.freeze_encoder leaves the stem of model.deep_stem at its random weights")
    pseudo = config.data.pseudo and find_list(config.data.pseudo, root).resolve()
    data = config.data.model_copy(update={"root": root.resolve(), "pseudo": pseudo})
    network = network_config(config)
    if config.eval.memory:
        require_memory(network)
    model = resolve_encoder(network)
    return config.model_copy(update={"data": data, "model": model, "optim": optim})


def resolve_again(
    config: Config, checkpoint: Checkpoint, path: Path, world: int, note: Note
) -> tuple[Config, Config, int]:
    """The configuration of a run that goes on, perhaps with another number of processes.

    A run's files speak of as many processes as it began with, whoever goes on with it: so none of its files has to
    change together with another one.

    Args:
        config: as the user gives it now.
        checkpoint: what the run goes on from.
        path: its file, for messages.
        world: number of processes now.
        note: called with lines that the user should know.

    Returns:
        What is trained now; what the run's files say; and for how many processes they say it.

    Raises:
        ConfigError: it would be another experiment.
    """
    before, saved = checkpoint.meta.get("processes", 1), saved_config(checkpoint, path)
    data = config.data.model_copy(update={"white": config.data.white or saved.data.white})
    config = config.model_copy(update={"model": _with_normalisation(config.model, saved.model), "data": data})
    resolved = resolve(same_update(config, before, world, note), world, note)
    then = resolve(same_update(saved, before, world, _silent), world, _silent)
    resolved = _with_taps_of(then, resolved) if not has_taps(config.model) else resolved
    known = keys(resolved.method.name)
    for name, old, new in differences(then, resolved):
        if not is_free(known[name]):
            raise ConfigError(
                f"{path}: cannot be resumed with {name} = {new}, it was trained with {old}; "
                "take the old value, or start a new run with another --out"
            )
        note(f"note: goes on with {name} = {new}, before it was {old}")
    return resolved, _with_parts_of(saved, resolved), before


def _with_parts_of(saved: Config, now: Config) -> Config:
    """What is trained now, but with the micro-batches that the run began with."""
    data = {name: getattr(saved.data, name) for name in ("batch_labeled", "batch_unlabeled")}
    return now.model_copy(
        update={
            "data": now.data.model_copy(update=data),
            "optim": now.optim.model_copy(update={"accumulate": saved.optim.accumulate}),
        }
    )


def _with_taps_of(then: Config, now: Config) -> Config:
    """What leaves open which layers the feature maps are means those that the run has."""
    taps = {name: value for name, value in then.model.encoder_config.items() if name in TAP_FIELDS}
    if not taps or then.model.encoder != now.model.encoder:
        return now
    fields = {name: value for name, value in now.model.encoder_config.items() if name not in TAP_FIELDS} | taps
    return now.model_copy(update={"model": now.model.model_copy(update={"encoder_config": fields})})


def _with_normalisation(model: ModelConfig, saved: ModelConfig) -> ModelConfig:
    """What the run takes of an image, where the user leaves it open: the folder of the weights may be gone by now."""
    return model.model_copy(update={"mean": model.mean or saved.mean, "std": model.std or saved.std})


def same_update(config: Config, then: int, now: int, note: Note) -> Config:
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
    differs = "dropout, rounding, and which images of a batch a method pairs"
    if accumulate * then % now == 0:
        changed = {"optim.accumulate": accumulate * then // now}
        differs += (
            ", and since there are other micro-batches, batch norm, the hard pixels of ohem and the memory's order"
        )
    else:
        changed = {name: size * then // now for name, size in parts.items() if name != "optim.accumulate"}
        if any(parts[name] * then != size * now for name, size in changed.items()):
            had = ", ".join(f"{name}={value}" for name, value in parts.items())
            raise ConfigError(
                f"the run was trained by {then} process{'es' * (then > 1)} with {had}: {now} cannot have updates "
                "of the same size; resume with another number of processes"
            )
    what = ", ".join(f"{name} {parts[name]} -> {size}" for name, size in changed.items())
    note(
        f"note: goes on with {now} process{'es' * (now > 1)}, before there were {then}: {what}. An update has the same "
        f"images and its loss is a mean over the same pixels; what differs: {differs}"
    )
    return apply_overrides(config, [f"{name}={size}" for name, size in changed.items()])


def _silent(line: str) -> None:
    """Said before."""
