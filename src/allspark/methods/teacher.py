"""A teacher: a moving average of the network that trains (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from allspark.batch import Progress
from allspark.kernels.logits import Logits
from allspark.models.allspark import SemanticMemory
from allspark.models.segmenter import Segmenter

M = TypeVar("M", bound=nn.Module)


class Average(nn.Module, Generic[M]):
    """A copy of a module that follows its weights. It has no gradient, is in eval mode by itself, and is saved.

    Args:
        student: the module that trains.
        decay: m of ``average = m * average + (1 - m) * student`` after each update; in the beginning
            1 - 1 / (step + 1), where that is smaller, so that the first update copies.
        buffers: what happens to floating-point buffers (statistics of batch norm): ``copy`` or ``average``; or they are
            its ``own``, and follow its passes in training mode. Whole numbers and the semantic memory are always
            copied.
    """

    def __init__(self, student: M, decay: float, buffers: Literal["copy", "average", "own"] = "copy") -> None:
        super().__init__()
        self.network: M = copy.deepcopy(student).requires_grad_(False).eval()
        self.decay = decay
        self.buffers_are = buffers

    def train(self, mode: bool = True) -> Average[M]:
        """Stay in eval mode."""
        return super().train(False)

    def begin(self, student: M) -> None:
        """Take the student's weights, whatever they became after this was made."""
        self.network.load_state_dict(student.state_dict())

    def follow(self, student: M, progress: Progress) -> None:
        """Follow a weight update of the student."""
        follow(self.network, student, min(1 - 1 / (progress.step + 1), self.decay), self.buffers_are)

    @contextmanager
    def training_pass(self) -> Iterator[M]:
        """Passes in training mode without gradient, which its batch norm's running statistics follow: the network."""
        self.network.train()
        try:
            with torch.no_grad():
                yield self.network
        finally:
            self.network.eval()
            torch.clear_autocast_cache()


class Teacher(Average[Segmenter]):
    """The average of a network, which labels images. Arguments as of :class:`Average`."""

    def logits(self, image: Float[Tensor, "b 3 H W"]) -> Logits:
        """What the teacher says of images: eval mode, no gradient."""
        with torch.no_grad():
            logits = self.network.logits(image)
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        return logits


@torch.no_grad()
def follow(network: M, student: M, decay: float, buffers: Literal["copy", "average", "own"]) -> None:
    """Let a network follow another of its kind: ``decay * network + (1 - decay) * student``.

    Args:
        network: that follows.
        student: that has learned; what it does not train stays as it is.
        decay: see above.
        buffers: see :class:`Teacher`.
    """
    pairs = zip(network.parameters(), student.parameters(), strict=True)
    move([pair for pair in pairs if pair[1].requires_grad], decay)  # the others are equal as they are
    memories = [part for part in network.modules() if isinstance(part, SemanticMemory)]
    remembered = {id(buffer) for memory in memories for buffer in memory.buffers()}  # no average of channels
    averaged: list[tuple[Tensor, Tensor]] = []
    for mine, new in zip(network.buffers(), student.buffers(), strict=True):
        if buffers == "copy" or not mine.is_floating_point() or id(mine) in remembered:
            mine.copy_(new)
        elif buffers == "average":
            averaged.append((mine, new))
    if averaged:  # apart from the weights, which may be divided among processes
        move(averaged, decay)


@torch.no_grad()
def move(pairs: Sequence[tuple[Tensor, Tensor]], decay: float) -> None:
    """Move the first tensor of each pair towards the second: ``decay * first + (1 - decay) * second``, in place."""
    get_ema_multi_avg_fn(decay)(*map(list, zip(*pairs, strict=True)), 0)
