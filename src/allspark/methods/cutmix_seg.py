"""CutMix-Seg (French, Laine, Aila, Mackiewicz, Finlayson, BMVC 2020): a mean teacher with soft labels and CutMix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import FrenchBoxes
from allspark.methods.consistency import MeanTeacher
from allspark.methods.losses import distance
from allspark.methods.mixing import box_masks, mix, valid_pixels
from allspark.models.segmenter import Segmenter
from allspark.runtime.collectives import all_reduce


class CutMixSeg(MeanTeacher):
    """What the network says of the mix of two unlabelled images has to be the mix of what its teacher says of them.

    Labelled and mixed images pass the network apart. The loss is a mean over all pixels, where padding has none; by
    default it counts as much as the share of the pixels that the teacher is sure of.
    """

    settings = config.CutMixSeg

    def __init__(self, settings: config.CutMixSeg, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = Views(
            labeled=settings.labeled_views,
            strong=1 if settings.unlabeled_views == "strong" else 0,
            colours=settings.colours,
            boxes=FrenchBoxes(area=settings.box_area),
            partner=True,
        )
        self.distance = settings.distance
        self.by_pixel = settings.confidence_weight == "pixel"

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: the teacher labels two unlabelled batches, the network sees labelled images, then the mix."""
        labeled, one, two = batch.labeled, batch.unlabeled, batch.partner
        assert labeled is not None
        assert one is not None
        assert one.boxes is not None
        assert two is not None
        where = box_masks(one.boxes[0], one.weak.shape[2:])
        valids = torch.cat([valid_pixels(one), valid_pixels(two)])
        scores = self.teacher.logits(torch.cat([one.weak, two.weak]))
        found = (*self.filter(scores, valids, progress), valids, _wide(scores.full()))
        labels, sure, valid, target = (_mixed(x, where) for x in found)
        views = torch.cat([part.weak if part.strong is None else part.strong[0] for part in (one, two)])

        logits_l = self.segmenter.logits(labeled.image)
        logits_u = self.segmenter.logits(_mixed(views, where))
        away = distance(logits_u, target, self.distance).where(valid, 0)
        total = away.where(sure, 0).sum() if self.by_pixel else _share(sure) * away.sum()
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress) * Term(total, _count(valid)),
        }
        return self.output(terms, labeled, labels, sure, valid)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The loss of unlabelled images is a mean over all pixels."""
        assert batch.unlabeled is not None
        return super().counts(batch) | {"unlabeled": _count(valid_pixels(batch.unlabeled))}


def _mixed(pair: Shaped[Tensor, "c ..."], where: Bool[Tensor, "b H W"]) -> Tensor:
    """The mix of the two halves of a batch."""
    one, two = pair.chunk(2)
    return mix(one, two, where)


def _wide(logits: Float[Tensor, "b k H W"]) -> Float[Tensor, "b k H W"]:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _count(pixels: Bool[Tensor, "b H W"]) -> Tensor:
    """How many there are, True or False, as a tensor on their device."""
    return pixels.new_tensor(pixels.numel(), dtype=torch.int64)


def _share(pixels: Bool[Tensor, "b H W"]) -> Tensor:
    """What part of them is True, in all processes."""
    counts = all_reduce(torch.stack([pixels.sum(), _count(pixels)]).double())
    return counts[0] / counts[1]
