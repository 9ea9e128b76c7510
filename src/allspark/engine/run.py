"""What checkpoints hold of networks and methods, and a trained network opened from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from allspark.batch import IMAGENET
from allspark.config.files import read_config
from allspark.config.resolve import network_config, require_memory
from allspark.config.schema import Config
from allspark.data.source import RGB, Source
from allspark.engine.checkpoint import FORMAT, Checkpoint, checkpoint_path, load_checkpoint
from allspark.errors import CheckpointError, ConfigError
from allspark.inference.predictor import Predictor
from allspark.methods import build_method, build_network
from allspark.methods.base import Method, deployed_name
from allspark.models.allspark import SemanticMemory
from allspark.models.encoder_config import write_taps
from allspark.models.ensemble import Network
from allspark.models.licences import Weights
from allspark.models.segmenter import Segmenter

MODEL = "model."
"""So begin the names of a deployed network's tensors in checkpoints; those of other state with ``method.``."""
_METHOD = "method."
_MEMORY = "bottleneck.memory."


@dataclass(frozen=True)
class Run:
    """A trained network with all that is needed to use it."""

    segmenter: Network
    config: Config
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    checkpoint: str
    meta: dict[str, Any]

    @property
    def step(self) -> int | None:
        """Weight updates after which the checkpoint was written; None: it was imported."""
        state = self.meta.get("state")
        return None if state is None else int(state["step"])

    @property
    def memory(self) -> SemanticMemory | None:
        """The network's semantic memory, if it has one."""
        return next((part for part in self.segmenter.modules() if isinstance(part, SemanticMemory)), None)

    def predictor(
        self, *, mode: str | None = None, precision: str | None = None, memory: bool | None = None
    ) -> Predictor:
        """What turns images into masks: on a GPU if there is one, unless the run was made for the CPU.

        Args:
            mode: ``whole`` or ``window``; None: as the run says.
            precision: of the network, as ``eval.precision``; None: as the run says.
            memory: attend to the semantic memory, as ``eval.memory``; None: as the run says.

        Raises:
            ConfigError: fp16 on a CPU, where it is ten times as slow; or a memory that is not there, or empty.
        """
        given = {"mode": mode, "precision": precision, "memory": memory}
        config = self.config.eval.model_copy(update={key: value for key, value in given.items() if value is not None})
        on_cpu = self.config.train.device == "cpu" or not torch.cuda.is_available()
        if on_cpu and config.precision == "fp16":
            raise ConfigError("precision fp16 needs a GPU: use --precision fp32 or bf16")
        if config.memory:
            require_memory(network_config(self.config))
            if self.memory is not None and not self.memory.written.any():
                raise ConfigError("eval.memory: nothing was ever written to the network's memory; set it to false")
        return Predictor(self.segmenter, config, "cpu" if on_cpu else "cuda")


def description(config: Config, source: Source) -> dict[str, Any]:
    """The part of a checkpoint's meta data that says what the network is."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
        "classes": list(source.classes),
        "palette": [list(colour) for colour in source.palette],
    }


def model_tensors(segmenter: Segmenter) -> dict[str, Tensor]:
    """A deployed network's tensors under the names that checkpoints give them."""
    return {MODEL + name: tensor for name, tensor in segmenter.state_dict().items()}


def method_names(method: Method) -> dict[str, str]:
    """The name in checkpoints of each tensor of a method's state: the deployed network's, and the rest."""
    deployed = next(name for name, module in method.named_modules() if module is method.deployed) + "."
    return {
        name: MODEL + name.removeprefix(deployed) if name.startswith(deployed) else _METHOD + name
        for name in method.state_dict()
    }


def load_method(method: Method, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's tensors into a method: its networks, and what else it holds.

    Raises:
        CheckpointError: a tensor is missing, or the class count or another size differs.
    """
    _require_classes(method.deployed, checkpoint, path)
    names = method_names(method)
    missing = [name for name in names.values() if name not in checkpoint.tensors]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]!r} is missing; it cannot be resumed")
    try:
        method.load_state_dict({name: checkpoint.tensors[saved] for name, saved in names.items()})
    except RuntimeError as error:
        raise CheckpointError(_does_not_fit(path, error)) from error


def load_network(segmenter: Segmenter, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's deployed network into one.

    Raises:
        CheckpointError: the class count or another size differs.
    """
    _require_classes(segmenter, checkpoint, path)
    try:
        segmenter.load_state_dict(checkpoint.part(MODEL))
    except RuntimeError as error:
        raise CheckpointError(_does_not_fit(path, error)) from error


def _require_classes(segmenter: Segmenter, checkpoint: Checkpoint, path: Path) -> None:
    found = len(checkpoint.said("classes", path))
    if found != segmenter.num_classes:
        raise CheckpointError(f"{path}: trained for {found} classes, but the data set has {segmenter.num_classes}")


def _does_not_fit(path: Path, error: RuntimeError) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path}: does not fit the network of its configuration ({reason})"


def open_run(run: Path, which: Literal["best", "last"] = "best", network: str | None = None) -> Run:
    """Open a trained network for evaluation or prediction.

    Args:
        run: folder that `train` or `import-checkpoint` wrote.
        which: the best checkpoint by validation mIoU, or the last one (also taken where there is no best).
        network: one of the method's candidates, such as ``student``; None: the one that is deployed.

    Raises:
        CheckpointError: no run, its checkpoint is damaged or does not fit, or it holds no such network.
    """
    path = checkpoint_path(run, which)
    if which == "best" and not path.is_file():
        path = checkpoint_path(run, "last")
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run (no {checkpoint_path(run, 'last')}); give the folder of `train --out`")
    return open_checkpoint(path, network)


def open_checkpoint(path: Path, network: str | None = None) -> Run:
    """Open a network of a checkpoint file; as :func:`open_run`."""
    checkpoint = load_checkpoint(path)
    config, classes = saved_config(checkpoint, path), tuple(checkpoint.said("classes", path))
    segmenter: Network
    if network is None:
        segmenter = build_network(config, len(classes), load_weights=False)
        load_network(segmenter, checkpoint, path)
    else:
        segmenter = _candidate(config, checkpoint, path, network)
    palette = tuple((r, g, b) for r, g, b in checkpoint.meta["palette"])
    return Run(segmenter.eval(), config, classes, palette, path.stem, checkpoint.meta)


def _candidate(config: Config, checkpoint: Checkpoint, path: Path, name: str) -> Network:
    """A network that the method of a checkpoint could deploy."""
    model = config.model.model_copy(update={"pretrained": "none"})  # all weights are in the checkpoint
    method = build_method(config.model_copy(update={"model": model}), len(checkpoint.meta["classes"]))
    candidates = method.candidates()
    if name not in candidates:
        raise CheckpointError(
            f"{path}: method {config.method.name} has no network {name!r}; there are {', '.join(candidates)}"
        )
    if candidates[name] is method.deployed:
        load_network(method.deployed, checkpoint, path)
    elif any(saved not in checkpoint.tensors for saved in method_names(method).values()):
        alone = deployed_name(method)
        raise CheckpointError(f"{path}: holds the {alone} alone, not the {name}; the last checkpoint holds all of them")
    else:
        load_method(method, checkpoint, path)
    return candidates[name]


def saved_config(checkpoint: Checkpoint, path: Path) -> Config:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: this version does not know it.
    """
    try:
        config = read_config(checkpoint.said("config", path), "its configuration")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Runs write both out now. Before that there was one normalisation, and plain transformers gave their last layers.
    model = write_taps(config.model, earlier=True)
    if model.mean is None or model.std is None:
        model = model.model_copy(update={"mean": IMAGENET.mean, "std": IMAGENET.std})
    return config.model_copy(update={"model": model})


def begin_with(method: Method, where: Path) -> tuple[str, Weights | None]:
    """Take the weights of an earlier run: the encoder whole, and whatever else has the same name and shape.

    So a supervised run can be the beginning of a semi-supervised one, whose bottleneck it does not have, and a network
    for other classes the beginning of this one. The semantic memory is not taken: it belongs to other images. Of
    several networks, all but the first take the encoder alone, so that they stay different.

    Args:
        method: whose networks begin so; their other weights stay as they were drawn.
        where: folder of the run, whose last checkpoint is read, or a checkpoint file.

    Returns:
        One line that says what was taken; and what the encoder of that run began with, if it is known.

    Raises:
        CheckpointError: no checkpoint, or another encoder.
    """
    path = where if where.is_file() else checkpoint_path(where, "last")
    checkpoint = load_checkpoint(path)
    theirs, known = checkpoint.part(MODEL), checkpoint.meta.get("state", {}).get("weights")
    first, *others = method.networks()
    for network in others:
        _take(network, {name: tensor for name, tensor in theirs.items() if name.startswith("encoder.")}, path)
    left = _take(first, theirs, path)
    parts = sorted({".".join(name.split(".")[:2]) for name in left if not name.startswith(_MEMORY)})
    said = f"begins with the weights of {path}" + (f"; drawn anew: {', '.join(parts)}" if parts else "")
    return said, Weights(**known) if known else None


def _take(network: Segmenter, theirs: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load what fits; returns the names of what does not."""
    own = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in own and own[name].shape == tensor.shape and not name.startswith(_MEMORY)
    }
    missing = [name for name in own if name.startswith("encoder.") and name not in fitting]
    if missing:
        raise CheckpointError(
            f"{path}: its encoder is another one ({missing[0]} does not fit); set model.encoder as it was there"
        )
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]
