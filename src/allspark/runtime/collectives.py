"""What several processes of one training have to agree on: gathered features, global counts, batch statistics.

Every function is the identity where there is one process. Collectives are issued in the same order by all processes,
in the forward pass and, by autograd, in the backward pass. Losses are means over the processes (data parallelism
averages gradients), so a tensor that all processes share receives the sum of what each one asks of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.errors import UserError


def processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, (b, ...) -> (processes * b, ...), with gradient."""
    if processes() == 1:
        return x
    result: Tensor = _Gather.apply(x)
    return result


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, with gradient."""
    if processes() == 1:
        return x
    result: Tensor = _Sum.apply(x)
    return result


def mean_count(count: Tensor) -> Tensor:
    """A count over all processes, divided by their number; 1 at least in all.

    Each process divides its sum by this: then the mean over processes is the mean over everything.
    """
    if processes() == 1:
        return count.clamp(min=1)
    return summed(count).clamp(min=1).double() / processes()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(processes())[dist.get_rank()]


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


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device (torch's own needs a GPU).

    Takes the place of a ``BatchNorm2d``, whose tensors it keeps under the same names.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise with the statistics of all processes in training, with the running ones otherwise."""
        count = x.numel() // x.shape[1] * processes()  # all processes have batches of one size
        if not self.training or count == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        mean = summed(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = summed(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch norms of a network see the images of all processes."""
    if processes() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.__class__ = SyncedBatchNorm
    return module


GO, FAILED = 0, 1000
"""Verdicts of :func:`agree`; between them lie exit statuses of a stop (130, 143)."""


class ElsewhereError(UserError):
    """Another process failed; its message is shown once, by process 0."""

    quiet = True


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def agree(code: int) -> int:
    """The largest code of all processes: every process calls this between two steps, so that all go on, or none."""
    if processes() == 1:
        return code
    verdict = torch.tensor(code)
    dist.all_reduce(verdict, dist.ReduceOp.MAX, group=_control())
    return int(verdict)


def part() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Part from the other processes and end this one at once.

    A thread of gloo's can abort a process while Python takes its modules apart, which this leaves out.
    """
    part()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def everyone(value: Any) -> list[Any]:
    """What each process has, in the order of their ranks; for small objects."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value, group=_control())
    return found


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all: none waits for one that is gone. No collective may stand inside."""
    if processes() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_together(error)


@contextmanager
def connected() -> Iterator[None]:
    """End quietly when another process is gone: it has said why, or what started the processes says so."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)
        if processes() == 1 or not lost:
            raise
        raise ElsewhereError("another process of this training is gone") from error


_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


def raise_together(error: Exception | None) -> None:
    """Raise if any process has an error. The first one's message is raised by process 0, to be shown once.

    Raises:
        ElsewhereError: in all other processes.
    """
    messages = everyone(None if error is None else _message(error))
    first = next((number for number, message in enumerate(messages) if message is not None), None)
    if first is None:
        return
    if error is not None and (rank() == 0 or not isinstance(error, (UserError, OSError))):
        raise error  # what is not the user's fault keeps its traceback
    if rank() == 0:
        raise UserError(f"process {first}: {messages[first]}")
    raise ElsewhereError(str(messages[first])) from error


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@cache
def _control() -> Any:
    """A group of its own for messages: they are on the CPU and wait for no GPU."""
    return dist.new_group(backend="gloo")
