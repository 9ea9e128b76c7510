"""Supervised baseline: the labelled images alone (SegFormer, Xie et al. 2021)."""

from __future__ import annotations

from allspark.batch import Progress, StepOutput, TrainBatch, Views
from allspark.config import methods as config
from allspark.methods.base import Method, class_pixels


class Supervised(Method):
    """Cross-entropy on the labelled crops."""

    settings = config.Supervised
    views = Views(unlabeled=False)

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: predict, compare with the mask."""
        labeled = batch.labeled
        assert labeled is not None
        loss = self.labeled_loss(self.segmenter.logits(labeled.image), labeled.mask)
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask)
        return StepOutput({"labeled": loss}, class_pixels=pixels)
