"""From a checkpoint of the published implementation to a run of this one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from allspark.config.files import save_config
from allspark.config.methods import AllSpark
from allspark.config.resolve import network_config
from allspark.config.schema import Config, DataConfig, ModelConfig
from allspark.data.sets.classes import read_classes
from allspark.data.source import Source, default_palette
from allspark.engine.checkpoint import checkpoint_path, save_checkpoint
from allspark.engine.run import description, model_tensors
from allspark.errors import CheckpointError
from allspark.models.encoder_config import MIT_PRESETS
from allspark.models.published import mit_sizes, read_foreign
from allspark.models.segmenter import Segmenter, build_segmenter


def import_published(file: Path, num_classes: int, out: Path, names: Path | None = None) -> Config:
    """Write a run with the weights of a published AllSpark checkpoint, for `eval` and `predict`.

    Args:
        file: a .pth file of the published code. Only tensors are read, nothing is executed.
        num_classes: k, as a check: a checkpoint of another data set is refused.
        out: folder of the run.
        names: classes.txt with class names and, if wanted, colours; None: `class 0`, `class 1` ...

    Returns:
        The configuration that describes the network; sizes are read off the weights.

    Raises:
        CheckpointError: the file is no published AllSpark checkpoint, has another class count, or ``out`` is a run.
        DataError: ``names`` is missing or malformed.
    """
    target = checkpoint_path(out, "last")
    if target.exists():
        raise CheckpointError(f"{target} exists: give another --out, or remove {out} first")
    state = read_foreign(file)
    try:
        segmenter = Segmenter.from_reference(state)
    except (CheckpointError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        # of all kinds, since sizes are read off whatever tensors are there
        reason = str(error) if isinstance(error, CheckpointError) else f"no AllSpark checkpoint ({error})"
        raise CheckpointError(f"{file}: {' '.join(reason.split())[:200]}") from error
    if segmenter.num_classes != num_classes:
        raise CheckpointError(f"{file}: has {segmenter.num_classes} classes, not {num_classes}; correct --classes")
    source = _source(num_classes, names)
    config = _config(state, segmenter)
    build_segmenter(network_config(config), num_classes, config.data.crop, load_weights=False).load_state_dict(
        segmenter.state_dict()
    )
    save_checkpoint(target, model_tensors(segmenter), description(config, source) | {"imported_from": file.name})
    save_config(config, out / "config.yaml")
    return config


def _config(state: dict[str, Tensor], segmenter: Segmenter) -> Config:
    """The configuration that builds this network."""
    prefix = "backbone."
    sizes = mit_sizes({key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)})
    preset = next((name for name, known in MIT_PRESETS.items() if all(list(known[k]) == sizes[k] for k in known)), None)
    bottleneck = segmenter.bottleneck
    assert bottleneck is not None
    assert bottleneck.memory is not None
    stride = segmenter.encoder.strides[-1]
    rows, columns = bottleneck.memory.grid
    return Config(
        data=DataConfig(crop=((rows - 1) * stride + 1, (columns - 1) * stride + 1)),
        model=ModelConfig(
            encoder=preset or "segformer",
            encoder_config=dict(sizes),
            pretrained="none",
            decoder_channels=segmenter.decoder.classifier.in_channels,
            bottleneck_heads=bottleneck.labeled.num_heads,
        ),
        method=AllSpark(),
    )


def _source(num_classes: int, names: Path | None) -> Source:
    """Class names and colours; published checkpoints hold neither."""
    if names is None:
        classes: tuple[str, ...] = tuple(f"class {index}" for index in range(num_classes))
        return Source(Path(), classes, default_palette(num_classes))
    classes, palette, _ = read_classes(names)
    if len(classes) != num_classes:
        raise CheckpointError(f"{names}: {len(classes)} classes, but the checkpoint has {num_classes}")
    return Source(Path(), classes, palette)
