"""UniMatch (Yang et al., CVPR 2023): one weak view supervises two strong views and a stream of dropped features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.config.methods.unimatch import WeakToStrong
from allspark.data.boxes import UniMatchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import eval_logits
from allspark.methods.consistency import Consistency
from allspark.methods.losses import Trust, trusted_cross_entropy
from allspark.methods.mixing import mix, reversed_batch, valid_pixels, view_boxes
from allspark.models.segmenter import Features, Segmenter


@dataclass(frozen=True)
class PseudoLabels:
    """The labels of u unlabelled images, mixed or not.

    Attributes:
        labels: class ids.
        sure: which of them count; or how far each is trusted, 0 to 1.
        valid: False where a crop was padded.
    """

    labels: Int[Tensor, "u H W"]
    sure: Shaped[Tensor, "u H W"]
    valid: Bool[Tensor, "u H W"]

    def mixed(self, other: PseudoLabels, where: Bool[Tensor, "u H W"]) -> PseudoLabels:
        """The other ones inside the boxes."""
        pairs = zip((self.labels, self.sure, self.valid), (other.labels, other.sure, other.valid), strict=True)
        return PseudoLabels(*(mix(own, theirs, where) for own, theirs in pairs))


Agreement = Callable[[Logits, PseudoLabels], Term]
"""A loss of logits and what they should say."""


def trusted(by: Trust, as_code: bool) -> Agreement:
    """Cross-entropy as far as labels are trusted; arguments as of `trusted_cross_entropy`."""

    def loss(logits: Logits, target: PseudoLabels) -> Term:
        return trusted_cross_entropy(logits, target.labels, target.sure, target.valid, by, as_code)

    return loss


sure_cross_entropy = trusted("pixel", False)
"""Of the labels that count, as a mean over all pixels that are no padding."""


@dataclass(frozen=True)
class Streams:
    """What the passes of a step gave.

    Attributes:
        labeled: logits of labelled images.
        dropped: of weak views, whose features lost channels.
        strong: of each strong view, mixed.
        boxes: (u, H, W) for each strong view, where the partner was pasted.
        own: labels of the weak views.
        other: those of the partners.
    """

    labeled: Logits
    dropped: Logits
    strong: Sequence[Logits]
    boxes: Sequence[Bool[Tensor, "u H W"]]
    own: PseudoLabels
    other: PseudoLabels

    def agreement(
        self, own: PseudoLabels, other: PseudoLabels, weight: float, loss: Agreement = sure_cross_entropy
    ) -> dict[str, Term]:
        """The streams have to say what labels of the weak views say: half of the weight is that of dropped features.

        Args:
            own: of the weak views.
            other: of the partners.
            weight: of all terms together.
            loss: of one stream.
        """
        terms = {"feature": 0.5 * weight * loss(self.dropped, own)}
        for number, (logits, box) in enumerate(zip(self.strong, self.boxes, strict=True), 1):
            terms[f"strong{number}"] = 0.5 * weight / len(self.strong) * loss(logits, own.mixed(other, box))
        return terms


class UniMatch(Consistency):
    """The network labels weak views in train mode, and learns to say the same of what is made of them.

    Where a box of another image is pasted, the label comes from an eval-mode pass over that one. Published, it is
    another random view of the same image, since one loader is read twice (issue 51 of the authors' repository); here
    ``partner`` is a draw of its own, or the reversed batch. Losses are means over all pixels that are no padding. With
    a bottleneck, labelled and weak images pass it together; the strong views, unlabelled only, as in inference.
    """

    settings: ClassVar[type[config.MethodConfig]] = config.UniMatch

    def __init__(self, settings: WeakToStrong, build: Callable[[], Segmenter]) -> None:
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
        """One step: all streams of it learn the labels of the weak views."""
        assert batch.labeled is not None
        streams = self.streams(batch, progress)
        terms = {"labeled": self.labeled_weight * self.labeled_loss(streams.labeled, batch.labeled.mask)}
        terms |= streams.agreement(streams.own, streams.other, self.unlabeled_weight(progress))
        return self.output(terms, batch.labeled, streams.own.labels, streams.own.sure, streams.own.valid)

    def streams(self, batch: TrainBatch, progress: Progress) -> Streams:
        """Label the partners, then pass labelled and weak images, which are labelled by it, then mixed strong views."""
        assert batch.labeled is not None
        unlabeled, partner = self.pair(batch)
        other = self.label(eval_logits(self.segmenter, partner.weak), partner, progress)
        _, logits_l, logits_w, dropped = self.weak_pass(batch.labeled.image, unlabeled, progress)
        own = self.label(logits_w, unlabeled, progress)
        boxes = view_boxes(unlabeled)
        images = self.mixed(unlabeled, partner, boxes)
        strong = self.segmenter.logits(torch.cat(images)).split([len(view) for view in images])
        return Streams(logits_l, dropped, strong, boxes, own, other)

    def label(self, scores: Logits, batch: UnlabeledBatch, progress: Progress) -> PseudoLabels:
        """What scores say of images; without gradient."""
        valid = valid_pixels(batch)
        labels, sure = self.filter(scores, valid, progress)
        return PseudoLabels(labels, sure, valid)

    def weak_pass(
        self, labeled: Float[Tensor, "l 3 H W"], unlabeled: UnlabeledBatch, progress: Progress
    ) -> tuple[Features, Logits, Logits, Logits]:
        """Features of labelled and weak images together; logits of both; and of weak ones that lost channels."""
        sizes = [len(labeled), len(unlabeled.weak)]
        guide = None
        if self.segmenter.bottleneck is not None:
            guide = self.guide(eval_logits(self.segmenter, unlabeled.weak), sizes[0], progress)
        features = self.segmenter.encode(torch.cat([labeled, unlabeled.weak]))
        features = self.segmenter.apply_bottleneck(features, guide)
        dropped = features.map(lambda x: F.dropout2d(x, self.feature_dropout))
        # Labelled images are dropped and decoded too, and thrown away: batch norm sees them.
        logits_l, logits_w, _, logits_f = self.segmenter.decode(Features.cat([features, dropped])).split(2 * sizes)
        return features, logits_l, logits_w, logits_f

    @staticmethod
    def mixed(own: UnlabeledBatch, other: UnlabeledBatch, boxes: Sequence[Bool[Tensor, "u H W"]]) -> list[Tensor]:
        """The strong views, (u, 3, H, W) each, with the partner's in their boxes."""
        assert own.strong is not None
        assert other.strong is not None
        return [mix(*views) for views in zip(own.strong, other.strong, boxes, strict=True)]

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        unlabeled, partner = self.pair(batch)
        own, other = valid_pixels(unlabeled), valid_pixels(partner)
        known = super().counts(batch)
        known["feature"] = known.pop("unlabeled")
        strong = {f"strong{i}": mix(own, other, box).sum() for i, box in enumerate(view_boxes(unlabeled), 1)}
        return known | strong

    @staticmethod
    def pair(batch: TrainBatch) -> tuple[UnlabeledBatch, UnlabeledBatch]:
        """The unlabelled images, and those that are pasted into them."""
        assert batch.unlabeled is not None
        return batch.unlabeled, reversed_batch(batch.unlabeled) if batch.partner is None else batch.partner
