"""Optimisers with their groups of parameters, and how the learning rate falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from allspark.config.schema import OptimConfig
from allspark.methods.base import Method

_ONE_AXIS = 1  # norms, biases and the like have no more


def build_optimizer(method: Method, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser: encoders of all networks at ``lr``, all else that trains at ``lr * head_multiplier``.

    Each group may be two, one of which is not decayed (``decay_norms``), and so may those be that a method leaves out
    of the schedule. A frozen encoder has none.
    """
    encoders = {id(x) for network in method.networks() for x in network.encoder.parameters()}
    trained = [x for x in method.parameters() if x.requires_grad]
    groups: list[dict[str, Any]] = []
    unscheduled = {id(x) for x in method.unscheduled()}
    multipliers = ((1.0, True), (config.head_multiplier, False))
    for (factor, wanted), constant in itertools.product(multipliers, (False, True)):
        some = [x for x in trained if (id(x) in encoders, id(x) in unscheduled) == (wanted, constant)]
        if config.decay_norms:
            groups.append({"params": some, "factor": factor, "constant": constant})
            continue
        for params, options in (
            ([x for x in some if x.dim() > _ONE_AXIS], {}),
            ([x for x in some if x.dim() <= _ONE_AXIS], {"weight_decay": 0.0}),
        ):
            groups.append({"params": params, "factor": factor, "constant": constant, **options})
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        fused = _can_be_fused(trained)
        optimizer = torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay)
    set_lr(optimizer, config, 1.0)
    return optimizer


def _can_be_fused(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch has one kernel for all of it; weights divided among processes are left to its loops."""
    kinds = {(x.device.type, x.is_floating_point(), isinstance(x.data, DTensor)) for x in parameters}
    return all(device in {"cpu", "cuda"} and floating and not divided for device, floating, divided in kinds)


def schedule(step: int, total: int, config: OptimConfig) -> float:
    """Factor of the learning rate at a step: rising in ``warmup_steps``, then falling to 0 at ``total``.

    ``poly`` is (1 - step / total)^power; the published code is one step late.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return float((1 - done) ** config.power)


def set_lr(optimizer: torch.optim.Optimizer, config: OptimConfig, factor: float) -> None:
    """Set the learning rates of all groups to their initial values times ``factor``, but for constant ones."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["factor"] * (1.0 if group["constant"] else factor)


def named_state(optimizer: torch.optim.Optimizer, method: Method) -> dict[str, torch.Tensor]:
    """All tensors of an optimiser's state, as STATE.PARAMETER."""
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    return {
        f"{key}.{names[id(parameter)]}": value
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
        if isinstance(value, torch.Tensor)
    }


def parameter_order(optimizer: torch.optim.Optimizer, method: Method) -> Sequence[str]:
    """Names of the parameters in the order in which the optimiser counts them."""
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
