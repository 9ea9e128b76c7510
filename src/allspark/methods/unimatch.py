"""UniMatch (Yang et al., CVPR 2023): one weak view supervises two strong views and a stream of dropped features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.methods.base import eval_logits
from allspark.methods.consistency import Consistency
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import mix, reversed_batch, valid_pixels, view_boxes
from allspark.models.segmenter import Features, Segmenter


class UniMatch(Consistency):
    """The network labels weak views in train mode, and learns to say the same of what is made of them.

    Where a box of another image is pasted, the label comes from an eval-mode pass over that one. Published, it is
    another random view of the same image, since one loader is read twice (issue 51 of the authors' repository); here
    ``partner`` is a draw of its own, or the reversed batch. Losses are means over all pixels that are no padding. With
    a bottleneck, labelled and weak images pass it together; the strong views, unlabelled only, as in inference.
    """

    settings = config.UniMatch

    def __init__(self, settings: config.UniMatch, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = Views(
            labeled=settings.labeled_views,
            strong=2,
            boxes=UniMatchBoxes(settings.cutmix),
            partner=settings.partner == "draw",
            colours=settings.colours,
        )
        self.feature_dropout = settings.feature_dropout

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label the partners, learn from labelled and weak images, then from mixed strong views."""
        labeled, unlabeled, partner = batch.labeled, *self._pair(batch)
        assert labeled is not None
        assert unlabeled.strong is not None
        assert partner.strong is not None
        sizes = [len(labeled.image), len(unlabeled.weak)]
        scores = eval_logits(self.segmenter, partner.weak)
        partner_labels, partner_sure = self.filter(scores, valid_pixels(partner), progress)

        guide = None
        if self.segmenter.bottleneck is not None:
            guide = self.guide(eval_logits(self.segmenter, unlabeled.weak), sizes[0], progress)
        features = self.segmenter.encode(torch.cat([labeled.image, unlabeled.weak]))
        features = self.segmenter.apply_bottleneck(features, guide)
        dropped = features.map(lambda x: F.dropout2d(x, self.feature_dropout))
        # Labelled images are dropped and decoded too, and thrown away: batch norm sees them.
        logits_l, logits_w, _, logits_f = self.segmenter.decode(Features.cat([features, dropped])).split(2 * sizes)
        valid = valid_pixels(unlabeled)
        labels, sure = self.filter(logits_w, valid, progress)  # without gradient

        boxes = view_boxes(unlabeled)
        pairs = zip(unlabeled.strong, partner.strong, boxes, strict=True)
        images = [mix(own, other, box) for own, other, box in pairs]
        logits_s = self.segmenter.logits(torch.cat(images)).split(2 * sizes[1:])

        feature = masked_cross_entropy(logits_f, labels, sure, valid)
        weight = self.unlabeled_weight(progress)
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "feature": 0.5 * weight * feature,
        }
        for number, (logits, box) in enumerate(zip(logits_s, boxes, strict=True), 1):
            target, keep = mix(labels, partner_labels, box), mix(sure, partner_sure, box)
            over = mix(valid, valid_pixels(partner), box)
            terms[f"strong{number}"] = 0.25 * weight * masked_cross_entropy(logits, target, keep, over)
        return self.output(terms, labeled, labels, sure, valid)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        unlabeled, partner = self._pair(batch)
        own, other = valid_pixels(unlabeled), valid_pixels(partner)
        known = super().counts(batch)
        known["feature"] = known.pop("unlabeled")
        strong = {f"strong{i}": mix(own, other, box).sum() for i, box in enumerate(view_boxes(unlabeled), 1)}
        return known | strong

    def _pair(self, batch: TrainBatch) -> tuple[UnlabeledBatch, UnlabeledBatch]:
        assert batch.unlabeled is not None
        return batch.unlabeled, reversed_batch(batch.unlabeled) if batch.partner is None else batch.partner
