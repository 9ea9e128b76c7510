"""UniMatch V2 (Yang et al., TPAMI 2025): a teacher's labels for two strong views that lose complementary channels."""

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
from allspark.methods.perturbations import complementary_dropout
from allspark.models.allspark import Guide
from allspark.models.segmenter import Features, Segmenter


class UniMatchV2(JointTeacher):
    """The teacher labels weak views; the student has to say the same of two strong ones, which share out the channels.

    The partner of an image is the one at its place in the reversed micro-batch of the process; each view has a CutMix
    box of its own. The losses of strong views are means over all pixels that are no padding, confident or not.

    Published are two passes of the student, over labelled images and over strong views. Here it is one over all, or two
    with ``strong_pass=apart``: all the same for a transformer with a DPT head, which has no batch norm (and the only
    network published). Batch norm's running statistics, which the teacher takes over, are then those of all images, or
    of the labelled ones, and not of the strong ones of the last pass.

    With a bottleneck, labelled images and the first strong view pass it together, guided by the teacher's scores; the
    second one passes it as in inference. Channels are dropped behind it, so that the memory holds whole features.
    """

    settings = config.UniMatchV2

    def __init__(self, settings: config.UniMatchV2, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        boxes = UniMatchBoxes(settings.cutmix)
        self.views = Views(labeled=settings.labeled_views, strong=2, boxes=boxes, colours=settings.colours)
        self.feature_dropout = settings.feature_dropout

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label weak views, mix strong ones, learn from labelled images and both views in one pass."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        boxes = view_boxes(unlabeled)  # (u, H, W) for each view
        scores = self.teacher.logits(unlabeled.weak)
        valid = valid_pixels(unlabeled)
        labels, sure = self.filter(scores, valid, progress)
        images = [pasted(view, box) for view, box in zip(unlabeled.strong, boxes, strict=True)]

        reverse = torch.arange(len(valid), device=valid.device).flip(0)
        guide = self.guide_mixed(scores, reverse, boxes[0], len(labeled.image), progress)
        features = self._encode(labeled.image, images, guide)
        if self.feature_dropout:
            features = complementary_dropout(features, num_clean=len(labeled.image))
        logits_l, *logits_s = self.decode(features, len(labeled.image), [len(view) for view in images])

        terms = {"labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask)}
        weight = self.unlabeled_weight(progress) / len(boxes)
        for number, (logits, box) in enumerate(zip(logits_s, boxes, strict=True), 1):
            target, keep, over = (pasted(x, box) for x in (labels, sure, valid))
            terms[f"strong{number}"] = weight * masked_cross_entropy(logits, target, keep, over)
        return self.output(terms, labeled, labels, sure, valid)

    def _encode(self, labeled: Tensor, strong: list[Tensor], guide: Guide | None) -> Features:
        """Features of labelled images and of both strong views, behind the bottleneck."""
        features = self.encode(labeled, torch.cat(strong))
        if self.segmenter.bottleneck is None:
            return features
        guided, alone = features.split([len(labeled) + len(strong[0]), len(strong[1])])
        return Features.cat(
            [self.segmenter.apply_bottleneck(guided, guide), self.segmenter.apply_bottleneck(alone)],
        )

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        assert batch.unlabeled is not None
        valid, known = valid_pixels(batch.unlabeled), super().counts(batch)
        del known["unlabeled"]
        boxes = view_boxes(batch.unlabeled)
        return known | {f"strong{number}": pasted(valid, box).sum() for number, box in enumerate(boxes, 1)}
