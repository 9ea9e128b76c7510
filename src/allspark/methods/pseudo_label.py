"""Pseudo-labels: the network's own hard predictions are the labels of the unlabelled images.

Without a bottleneck this is the paper's SemiBaseline: all of AllSpark's training, without its module.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.config import methods as config
from allspark.methods.base import Method, class_pixels, eval_logits, hard_labels
from allspark.methods.losses import cross_entropy


class PseudoLabel(Method):
    """Cross-entropy on labels and on hard pseudo-labels, in equal parts."""

    settings: ClassVar[type[config.MethodConfig]] = config.PseudoLabel

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: scores of the unlabelled crops supervise them, and guide the bottleneck where there is one."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        scores = eval_logits(self.segmenter, unlabeled.weak)
        pseudo_labels = hard_labels(scores, unlabeled)  # (u, H, W)

        guide = self.guide(scores, len(labeled.image), progress)
        logits = self.segmenter.logits(torch.cat([labeled.image, unlabeled.weak]), guide)  # of l + u images
        logits_l, logits_u = logits.split([len(labeled.image), len(unlabeled.weak)])

        terms = {
            "labeled": 0.5 * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": 0.5 * cross_entropy(logits_u, pseudo_labels),
        }
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo_labels)
        return StepOutput(terms, self.metrics(), pixels)
