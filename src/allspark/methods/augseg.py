"""AugSeg (Zhao, Yang, Long, Pi, Zhou, Wang, *Augmentation Matters*, CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import BetaBoxes
from allspark.kernels.logits import Logits
from allspark.methods.consistency import JointTeacher
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import box_masks, mix, partners, valid_pixels
from allspark.models.segmenter import Segmenter

_LABELED, _OTHER = (8.0, 2.0), (4.0, 4.0)  # how large the boxes of labelled content and of other images are


class AugSeg(JointTeacher):
    """A mean teacher whose strong views carry the method: colours out of a random list, and two CutMix pastes.

    The less sure the teacher is of an image, the likelier labelled content is pasted into it. From what comes out of
    this, a box is pasted into another image as it was: labelled content shows where both boxes meet. Partners are the
    first and the second image of a micro-batch, the third and the fourth, and so on; published, they are drawn. The
    loss is a mean over all pixels that are no padding. With a bottleneck the teacher's scores, mixed as the images but
    for labelled content, guide it.
    """

    settings = config.AugSeg

    def __init__(self, settings: config.AugSeg, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = Views(
            labeled=settings.labeled_views,
            strong=1,
            colours=settings.colours,
            boxes=BetaBoxes((_LABELED, _OTHER)),
            chance=True,
        )
        self.inject = settings.inject

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label weak views, paste labelled content and other images, learn from both kinds in one pass."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        assert unlabeled.chance is not None
        order = partners(len(unlabeled.weak), unlabeled.weak.device)
        from_labeled, where, valid, valid_mixed = _pasted(unlabeled, order)  # (u, H, W) each
        scores = self.teacher.logits(unlabeled.weak)
        labels, sure = self.filter(scores, valid, progress)
        sureness = image_confidence(scores, valid)
        chosen = (unlabeled.chance > sureness) & self.inject
        from_labeled = from_labeled & chosen[:, None, None]
        place = order % len(labeled.image)
        image = unlabeled.strong[0]
        others = mix(image, labeled.image[place], from_labeled), mix(labels, labeled.mask[place], from_labeled)
        image = mix(image, others[0][order], where)
        target = mix(labels, others[1][order], where)
        keep = mix(sure, (sure | from_labeled)[order], where)

        guide = self.guide_mixed(scores, order, where, len(labeled.image), progress)
        features = self.segmenter.apply_bottleneck(self.encode(labeled.image, image), guide)
        logits_l, logits_u = self.decode(features, len(labeled.image), [len(image)])
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress) * masked_cross_entropy(logits_u, target, keep, valid_mixed),
        }
        return self.output(terms, labeled, labels, sure, valid, injected=chosen.double().mean())

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        assert batch.unlabeled is not None
        order = partners(len(batch.unlabeled.weak), batch.unlabeled.weak.device)
        return super().counts(batch) | {"unlabeled": _pasted(batch.unlabeled, order)[3].sum()}


def image_confidence(scores: Logits, valid: Bool[Tensor, "u H W"]) -> Float[Tensor, " u"]:
    """How sure a network is of each image: mean over its pixels of (1 - entropy / ln k) * best probability.

    Args:
        scores: of u images.
        valid: False where a crop was padded; these pixels do not count.
    """
    confidence, _ = scores.best()
    certainty = 1 - scores.entropy() / math.log(scores.coarse.shape[1])
    return (certainty * confidence).where(valid, 0).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def _pasted(unlabeled: UnlabeledBatch, order: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of labelled content and of other images, and pixels that are no padding before and after the latter."""
    assert unlabeled.boxes is not None
    size = unlabeled.weak.shape[2:]
    from_labeled, where = (box_masks(boxes, size) for boxes in unlabeled.boxes[0].split(1, dim=1))
    valid = valid_pixels(unlabeled)
    return from_labeled, where, valid, mix(valid, valid[order], where)
