"""CorrMatch (Sun et al., CVPR 2024): labels spread over what looks alike in the network's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from allspark.batch import LabeledBatch, Progress, StepOutput, Term, TrainBatch, UnlabeledBatch
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.base import eval_logits
from allspark.methods.filters import AdaptiveThreshold
from allspark.methods.losses import distance
from allspark.methods.mixing import mix, valid_pixels, view_boxes
from allspark.methods.propagation import region_maps, spread_labels, spread_places
from allspark.methods.unimatch import PseudoLabels, UniMatch, sure_cross_entropy
from allspark.models.correlation import CorrelationHead
from allspark.models.segmenter import Features, Segmenter


class CorrMatch(UniMatch):
    """UniMatch with one strong view; a head beside the network learns which positions of an image are alike.

    By it scores spread, which have to be right too. And labels spread: where most of a region of like positions is
    confident, and agrees, all of it gets that label. One threshold says what is confident, and follows what the network
    is surest of in each class. The correlation of all positions with one another, (h w)^2 numbers an image, is the
    memory that a step costs beside UniMatch's.
    """

    settings = config.CorrMatch

    def __init__(self, settings: config.CorrMatch, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = replace(self.views, strong=1, chance=True)
        channels, classes = self.segmenter.encoder.channels[-1], self.segmenter.num_classes
        head = (settings.correlation_width, settings.correlation_dropout)
        self.correlation = CorrelationHead(channels, classes, *head)
        self.level = AdaptiveThreshold(settings.confidence, settings.threshold_memory, classes)
        self.regions = settings.regions
        self.soft_as_code = settings.soft_target == "code"

    @property
    def threshold(self) -> None:
        """It changes: the log has it."""

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: UniMatch's passes, each with scores that spread; then labels that spread for the strong view."""
        unlabeled, partner = self.pair(batch)
        labeled, (box,) = batch.labeled, view_boxes(unlabeled)
        assert labeled is not None
        assert unlabeled.chance is not None
        scores = eval_logits(self.segmenter, partner.weak)
        features, logits_l, logits_w, dropped = self.weak_pass(labeled.image, unlabeled, progress)
        (spread_l, spread_w), likeness = self.correlated(features, [logits_l, logits_w])
        features = self.segmenter.apply_bottleneck(self.segmenter.encode(*self.mixed(unlabeled, partner, [box])))
        logits_s = self.segmenter.decode(features)
        (spread_s,), _ = self.correlated(features, [logits_s])

        own, other = self.label(logits_w, unlabeled, progress), self.label(scores, partner, progress)
        target = own.mixed(other, box)  # with probabilities
        self.level.see(own.sure, own.labels, target.valid)
        weak = replace(own, sure=own.sure >= self.level.value)
        confident = (target.sure >= self.level.value) & target.valid
        places = spread_places(unlabeled.chance, self.regions, likeness.shape[1])
        regions = region_maps(likeness[len(labeled.image) :], places, spread_w)
        regions &= (target.valid & ~box)[:, None]
        labels, trusted = spread_labels(target.labels, confident, regions, self.level.value, spread_w.coarse.shape[1])
        grown = PseudoLabels(labels, trusted, target.valid)
        soft = logits_w.full().detach()
        soft = soft if self.soft_as_code else mix(soft, scores.full(), box)
        agreement = Term(distance(logits_s, soft, "kl").where(confident, 0).sum(), target.valid.sum())

        weight = 0.25 * self.unlabeled_weight(progress)
        terms = self._labeled(labeled, logits_l, spread_l) | {
            "strong1": weight * sure_cross_entropy(logits_s, grown),
            "soft": weight * agreement,
            "feature": weight * sure_cross_entropy(dropped, weak),
            "correlated": 0.5 * weight * sure_cross_entropy(spread_s, grown),
            "correlated_weak": 0.5 * weight * sure_cross_entropy(spread_w, weak),
        }
        more = {"threshold": self.level.value.clone(), "spread": (trusted & ~confident).double().mean()}
        return self.output(terms, labeled, own.labels, weak.sure, own.valid, **more)

    def label(self, scores: Logits, batch: UnlabeledBatch, progress: Progress) -> PseudoLabels:
        """The best class of every pixel, with its probability."""
        confidence, labels = scores.best()
        return PseudoLabels(labels, confidence, valid_pixels(batch))

    def correlated(self, features: Features, logits: Sequence[Logits]) -> tuple[list[Logits], Tensor]:
        """Logits spread over like positions, and (b, n, n), how alike positions are, without gradient."""
        last, first = features.maps[-1], logits[0]
        coarse = torch.cat([part.coarse.detach() for part in logits])
        coarse = F.interpolate(coarse, last.shape[2:], mode="bilinear", align_corners=first.aligned)
        spread, likeness = self.correlation(last, coarse)
        return replace(first, coarse=spread, auxiliary=None).split(
            [len(part.coarse) for part in logits]
        ), likeness.detach()

    def learn_labeled(self, labeled: LabeledBatch) -> dict[str, Term]:
        """In the supervised warm-up the head learns too."""
        features = self.segmenter.apply_bottleneck(self.segmenter.encode(labeled.image))
        logits = self.segmenter.decode(features)
        return self._labeled(labeled, logits, self.correlated(features, [logits])[0][0])

    def _labeled(self, labeled: LabeledBatch, logits: Logits, spread: Logits) -> dict[str, Term]:
        named = {"labeled": logits, "labeled_correlated": spread}
        return {k: 0.5 * self.labeled_weight * self.labeled_loss(x, labeled.mask) for k, x in named.items()}

    def after_step(self, progress: Progress) -> None:
        """The threshold follows."""
        self.level.follow()

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The spread scores learn of the same pixels as the others."""
        known = super().counts(batch)
        same = {"labeled_correlated": "labeled", "correlated_weak": "feature"}
        same |= {"soft": "strong1", "correlated": "strong1"}
        return known | {name: known[other] for name, other in same.items() if other in known}
