"""What an update has to log, left on its device until a number is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from allspark.batch import StepOutput, TrainBatch

GRAD_NORM = "grad_norm"
"""The log's name of the gradient's norm before it is clipped."""


@dataclass(frozen=True)
class Scalars:
    """What a micro-batch has to log, on its device: names with values (len(names),), loss first; and class pixels.

    The last one of an update also has ``GRAD_NORM``, unless fp16's scale, which is found by trying, keeps watch.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    class_pixels: Mapping[str, Tensor]

    def with_norm(self, norm: Tensor) -> Scalars:
        """The same, and the norm of the update's gradient, scalar."""
        values = torch.cat([self.values, norm.detach().to(self.values).reshape(1)])
        return replace(self, names=(*self.names, GRAD_NORM), values=values)

    def and_then(self, other: Scalars) -> Scalars:
        """Those of two phases of one step: their losses add up, and so do the squares of the gradients' norms."""
        mine, theirs = (dict(zip(one.names, one.values, strict=True)) for one in (self, other))
        found = mine | theirs | {"loss": mine["loss"] + theirs["loss"]}
        if GRAD_NORM in found:  # comes last
            found[GRAD_NORM] = torch.hypot(mine.pop(GRAD_NORM), found.pop(GRAD_NORM))
        pixels = {**self.class_pixels, **other.class_pixels}
        return Scalars(self.ids, tuple(found), torch.stack(list(found.values())), pixels)

    def judged(self) -> dict[str, Tensor]:
        """What has to be finite, by its name in messages."""
        found = {"loss": self.values[0]}
        if self.names[-1] == GRAD_NORM:
            found["gradient"] = self.values[-1]
        return found


def scalars_of(batch: TrainBatch, loss: Tensor, means: Mapping[str, Tensor], output: StepOutput) -> Scalars:
    """What a micro-batch has to log: its loss, the mean of each term, and the method's metrics."""
    logged = {"loss": loss, **{f"loss_{name}": x for name, x in means.items()}, **output.metrics}
    values = torch.stack([x.detach().double() for x in logged.values()])
    return Scalars(batch.ids, tuple(logged), values, output.class_pixels)
