"""SGD in two groups, and the poly schedule."""

from __future__ import annotations

import torch

from allspark.config.schema import OptimConfig
from allspark.methods.base import Method


def build_optimizer(method: Method, config: OptimConfig) -> torch.optim.SGD:
    """Build SGD with momentum: the encoder at ``lr``, all other parameters at ``lr * head_multiplier``."""
    encoder = list(method.segmenter.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in method.parameters() if id(parameter) not in known and parameter.requires_grad]
    groups = [{"params": [p for p in encoder if p.requires_grad]}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay)
    set_lr(optimizer, config, 1.0)
    return optimizer


def poly(step: int, total: int, power: float) -> float:
    """Factor of the learning rate at a step: (1 - step / total)^power. The published code is one step late."""
    return float((1 - step / total) ** power)


def set_lr(optimizer: torch.optim.Optimizer, config: OptimConfig, factor: float) -> None:
    """Set the learning rates of both groups to their initial values times ``factor``."""
    for group, lr in zip(optimizer.param_groups, (config.lr, config.lr * config.head_multiplier), strict=True):
        group["lr"] = lr * factor
