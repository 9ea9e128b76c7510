"""The random state of all processes: what dropout draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allspark.errors import CheckpointError
from allspark.runtime.collectives import all_gather_object, rank


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of all processes by their names in checkpoints; all call this together."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    every = enumerate(all_gather_object(own))
    return {_name(kind, number): state for number, states in every for kind, state in states.items()}


def restore_random_state(tensors: Mapping[str, Tensor], device: torch.device, fresh: int, path: Path) -> None:
    """Take this process's state from a checkpoint's tensors.

    Args:
        tensors: of the checkpoint.
        device: where this process computes.
        fresh: seed of processes that the checkpoint knows nothing of: the run had fewer.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: there is no such state.
    """
    number = rank()
    if number and _name("cpu", number) not in tensors:
        torch.manual_seed(process_seed(fresh, number))
        return
    try:
        torch.set_rng_state(tensors[_name("cpu", number)])
        state = tensors.get(_name("cuda", number))
        if device.type == "cuda" and state is not None:
            torch.cuda.set_rng_state(state, device)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: its random state is missing or damaged; it cannot be resumed") from error


def process_seed(seed: int, number: int) -> int:
    """What the random numbers of a process begin with."""
    return int(np.random.SeedSequence(seed, spawn_key=(2, number)).generate_state(1, np.uint64)[0] >> 1)


def _name(kind: str, number: int) -> str:
    return f"rng.{kind}" + (f".{number}" if number else "")
