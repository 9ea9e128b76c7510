"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation, as in UniMatch V2's repository (Yang et al., TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from allspark.batch import IGNORE, Progress, StepOutput, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.methods.base import class_pixels
from allspark.methods.consistency import JointTeacher
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import box_masks, mix, mix_logits, valid_pixels
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
        where, valid = _boxes_and_valid(unlabeled)  # (u, H, W) each
        scores = self.teacher.logits(unlabeled.weak)
        found = self.filter(scores, valid_pixels(unlabeled), progress)
        labels, sure = (mix(x, x.flip(0), where) for x in found)
        image = mix(unlabeled.strong[0], unlabeled.strong[0].flip(0), where)

        guide = None
        if self.segmenter.bottleneck is not None:
            reverse = replace(scores, coarse=scores.coarse.flip(0))
            guide = self.guide(mix_logits(scores, reverse, where), len(labeled.image), progress)
        features = self.segmenter.apply_bottleneck(self.encode(labeled.image, image), guide)
        logits_l, logits_u = self.decode(features, len(labeled.image), [len(image)])

        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress) * masked_cross_entropy(logits_u, labels, sure, valid),
        }
        pseudo = labels.where(valid, IGNORE)  # sure or not: a class is forgotten before it is unsure
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo)
        return StepOutput(terms, self.metrics() | {"kept": (sure & valid).sum() / valid.sum().clamp(min=1)}, pixels)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        assert batch.unlabeled is not None
        _, valid = _boxes_and_valid(batch.unlabeled)
        return super().counts(batch) | {"unlabeled": valid.sum()}


def _boxes_and_valid(unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor]:
    """What is pasted, and which pixels of the mixed images are no padding; (u, H, W) each."""
    assert unlabeled.boxes is not None
    where, valid = box_masks(unlabeled.boxes[0], unlabeled.weak.shape[2:]), valid_pixels(unlabeled)
    return where, mix(valid, valid.flip(0), where)
