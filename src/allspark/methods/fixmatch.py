"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation, as in UniMatch V2's repository (Yang et al., TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.methods.consistency import JointTeacher
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import pasted, valid_pixels, view_boxes
from allspark.models.segmenter import Segmenter


class FixMatch(JointTeacher):
    """The teacher labels weak views; where it is sure, the student has to say the same of a strong view with CutMix.

    The partner of an image is the one at its place in the reversed micro-batch of the process. The loss is a mean over
    all pixels that are no padding, confident or not. With a bottleneck the teacher's scores guide it.
    """

    settings = config.FixMatch

    def __init__(self, settings: config.FixMatch, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        boxes = UniMatchBoxes(settings.cutmix)
        self.views = Views(labeled=settings.labeled_views, strong=1, boxes=boxes, colours=settings.colours)

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label weak views, mix strong ones, learn from labelled and mixed images in one pass."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        (where,) = view_boxes(unlabeled)
        scores, valid = self.teacher.logits(unlabeled.weak), valid_pixels(unlabeled)
        labels, sure = (pasted(x, where) for x in self.filter(scores, valid, progress))
        image, valid = pasted(unlabeled.strong[0], where), pasted(valid, where)

        reverse = torch.arange(len(image), device=image.device).flip(0)
        guide = self.guide_mixed(scores, reverse, where, len(labeled.image), progress)
        features = self.segmenter.apply_bottleneck(self.encode(labeled.image, image), guide)
        logits_l, logits_u = self.decode(features, len(labeled.image), [len(image)])

        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress) * masked_cross_entropy(logits_u, labels, sure, valid),
        }
        return self.output(terms, labeled, labels, sure, valid)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        assert batch.unlabeled is not None
        (where,) = view_boxes(batch.unlabeled)
        return super().counts(batch) | {"unlabeled": pasted(valid_pixels(batch.unlabeled), where).sum()}
