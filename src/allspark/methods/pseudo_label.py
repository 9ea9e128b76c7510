"""Pseudo-labels: the network's own hard predictions are the labels of the unlabelled images.

The paper's SemiBaseline: all of AllSpark's training, without its bottleneck.
"""

from __future__ import annotations

import torch

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.methods.base import Method, class_pixels, eval_logits, hard_labels
from allspark.methods.losses import cross_entropy


class PseudoLabel(Method):
    """Cross-entropy on labels and on hard pseudo-labels, in equal parts."""

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: an eval-mode pass labels the unlabelled crops, one forward pass learns from all."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert unlabeled is not None
        pseudo_labels = hard_labels(eval_logits(self.segmenter, unlabeled.image), unlabeled)  # (u, H, W)

        logits = self.segmenter.logits(torch.cat([labeled.image, unlabeled.image]))  # of l + u images
        logits_l, logits_u = logits.split(len(labeled.image))

        loss_l = self.labeled_loss(logits_l, labeled.mask)
        loss_u = cross_entropy(logits_u, pseudo_labels)
        loss = (loss_l + loss_u) / 2
        metrics = {"loss_labeled": loss_l.detach(), "loss_unlabeled": loss_u.detach()}
        targets = {"labeled": labeled.mask, "pseudo": pseudo_labels}
        return StepOutput(
            loss, metrics, {name: class_pixels(t, self.segmenter.num_classes) for name, t in targets.items()}
        )
