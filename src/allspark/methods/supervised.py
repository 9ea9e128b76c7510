"""Supervised baseline: the labelled images alone (SegFormer, Xie et al. 2021)."""

from __future__ import annotations

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.methods.base import Method, class_pixels


class Supervised(Method):
    """Cross-entropy on the labelled crops."""

    wants_unlabeled = False

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: predict, compare with the mask."""
        labeled = batch.labeled
        loss = self.labeled_loss(self.segmenter.logits(labeled.image), labeled.mask)
        pixels = {"labeled": class_pixels(labeled.mask, self.segmenter.num_classes)}
        return StepOutput(loss, {"loss_labeled": loss.detach()}, pixels)
