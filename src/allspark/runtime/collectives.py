"""Sums and gathers over the processes of one training.

Every function is the identity where there is one process. Collectives are issued in the same order by all processes,
in the forward pass and, by autograd, in the backward pass. Losses are means over the processes (data parallelism
averages gradients), so a tensor that all processes share receives the sum of what each one asks of it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, (b, ...) -> (processes * b, ...), with gradient."""
    if world_size() == 1:
        return x
    result: Tensor = _Gather.apply(x)
    return result


def all_reduce(x: Tensor) -> Tensor:
    """The sum over all processes, with gradient."""
    if world_size() == 1:
        return x
    result: Tensor = _Sum.apply(x)
    return result


def all_gather_object(value: Any) -> list[Any]:
    """What each process has, in the order of their ranks; for small objects."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=control_group())
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


@cache
def control_group() -> Any:
    """A group of its own for messages: they are on the CPU and wait for no GPU."""
    return dist.new_group(backend="gloo")
