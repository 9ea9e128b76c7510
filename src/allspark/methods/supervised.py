"""Supervised baseline: the labelled images alone (SegFormer, Xie et al. 2021)."""

from __future__ import annotations

from allspark.methods.base import Method
from allspark.methods.losses import cross_entropy
from allspark.types import Progress, StepOutput, TrainBatch


class Supervised(Method):
    """Cross-entropy on the labelled crops."""

    wants_unlabeled = False

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: predict, compare with the mask."""
        loss = cross_entropy(self.segmenter(batch.labeled.image), batch.labeled.mask)
        return StepOutput(loss, {"loss_labeled": loss.detach()})
