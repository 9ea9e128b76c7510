"""The state of a run: what its checkpoints hold beside the configuration, and how it is taken up again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from allspark.engine.checkpoint import Checkpoint, checkpoint_path, describe, model_tensors
from allspark.engine.run_folder import absolute, fingerprints, require_same_images
from allspark.errors import CheckpointError
from allspark.runtime.collectives import all_gather_object
from allspark.runtime.sharding import like, whole

if TYPE_CHECKING:
    from allspark.engine.session import Session


@dataclass
class State:
    """What outlives a step beside tensors; it is in every checkpoint."""

    step: int = 0  # weight updates done
    seconds: float = 0.0
    best: float | None = None
    last: float | None = None
    best_step: int | None = None
    peak_memory: int = 0  # of the process, or of the GPU [bytes]
    sums: dict[str, float] = field(default_factory=dict)  # of the log row that is being gathered
    count: int = 0
    class_pixels: dict[str, list[int]] = field(default_factory=dict)  # of the targets since the last validation
    warned: list[str] = field(default_factory=list)
    initial: str = ""  # checksum of the weights that encoder and decoder began with


def meta(session: Session) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    scaler = session.accelerator.scaler  # of fp16's loss; None otherwise
    return {
        **describe(absolute(session.config), session.source),
        "images": fingerprints(session.source),
        "processes": session.accelerator.num_processes,
        "scaler": None if scaler is None else scaler.state_dict(),
        "state": asdict(session.state),
    }


def tensors(session: Session) -> dict[str, Tensor]:
    """Network, method state and momentum; all processes call this together."""
    tensors = network_tensors(session)
    for name, tensor in session.method.state_dict().items():
        if not name.startswith("segmenter."):
            tensors[f"method.{name}"] = tensor
    names = {id(parameter): name for name, parameter in session.method.named_parameters()}
    for parameter, memory in session.optimizer.state.items():
        if memory.get("momentum_buffer") is not None:
            tensors[f"momentum.{names[id(parameter)]}"] = whole(memory["momentum_buffer"])
    if session.watched is not None:
        tensors["health.watched"] = torch.from_numpy(session.watched)
    return tensors


def network_tensors(session: Session) -> dict[str, Tensor]:
    """The network as checkpoints hold it; all processes call this together."""
    return {name: whole(tensor) for name, tensor in model_tensors(session.method.segmenter).items()}


def random_states(session: Session) -> dict[str, Tensor]:
    """The random states of all processes; all call this together."""
    device = session.accelerator.device
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return {
        _rng(kind, number): state
        for number, states in enumerate(all_gather_object(own))
        for kind, state in states.items()
    }


def _rng(kind: str, number: int) -> str:
    return f"rng.{kind}" + (f".{number}" if number else "")


def process_seed(seed: int, number: int) -> int:
    """What the random numbers of a process begin with."""
    return int(np.random.SeedSequence(seed, spawn_key=(2, number)).generate_state(1, np.uint64)[0] >> 1)


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Take everything back from a checkpoint."""
    path = checkpoint_path(session.out, "last")
    require_same_images(checkpoint, session.source, path)
    if session.accelerator.scaler is not None:
        session.accelerator.scaler.load_state_dict(checkpoint.meta["scaler"])
    try:
        own = session.method.state_dict()
        for name in own:
            if not name.startswith("segmenter."):
                own[name].copy_(checkpoint.tensors[f"method.{name}"])
        named = dict(session.method.named_parameters())
        for name, buffer in checkpoint.part("momentum.").items():
            session.optimizer.state[named[name]]["momentum_buffer"] = like(buffer, named[name])
        number = session.accelerator.process_index
        if number and _rng("cpu", number) not in checkpoint.tensors:  # the run had fewer processes
            torch.manual_seed(process_seed(session.config.seed + checkpoint.meta["state"]["step"], number))
        else:
            torch.set_rng_state(checkpoint.tensors[_rng("cpu", number)])
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing; it cannot be resumed") from error
    cuda = checkpoint.tensors.get(_rng("cuda", number))
    if session.accelerator.device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda, session.accelerator.device)
    watched = checkpoint.tensors.get("health.watched")
    session.watched = None if watched is None else watched.numpy()
    session.state = State(**checkpoint.meta["state"])
