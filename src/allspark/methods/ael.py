"""AEL (Hu et al., *Semi-Supervised Semantic Segmentation via Adaptive Equalization Learning*, NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.batch import IGNORE, LabeledBatch, Progress, StepOutput, Term, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import FrenchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.consistency import MeanTeacher
from allspark.methods.draws import choose, draw_class, draws, key_of
from allspark.methods.equalization import (
    box_probability,
    holds,
    kept,
    of_classes,
    paste_probability,
    require_classes,
    uniform_map,
)
from allspark.methods.filters import class_means
from allspark.methods.mixing import box_masks, mix, partners, valid_pixels
from allspark.methods.regions import region_boxes
from allspark.models.segmenter import Segmenter

_COIN, _CLASSES, _DONOR, _REGION = range(4)  # what a random number of an image is for


class Found(NamedTuple):
    """What a teacher found in images, (b, H, W) each but the last: its labels, how sure it is, which labels count."""

    labels: Tensor
    confidence: Tensor
    sure: Tensor
    valid: Tensor
    target: Tensor  # what the loss compares with: the labels, or more about them


class AEL(MeanTeacher):
    """A running confidence of each class steers what is pasted, and which pixels count, in favour of weak classes.

    Pixels of weak classes are pasted from one labelled image into its neighbour. An unlabelled image gets the
    surroundings of a region of a weak class out of the partner images. A teacher, in training mode, labels labelled and
    mixed images; its labels weigh as its confidence squared, and count the rarer, the surer the network is of a class.
    """

    settings: ClassVar[type[config.Equalization]] = config.AEL
    running: Tensor

    def __init__(self, settings: config.Equalization, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build, buffers="own")
        self.views = Views(
            labeled=settings.labeled_views,
            strong=1 if settings.unlabeled_views == "strong" else 0,
            colours=settings.colours,
            boxes=FrenchBoxes(area=(0.5, 0.5)),
            partner=True,
            chance=True,
        )
        self.rules = settings
        num_classes = self.segmenter.num_classes
        require_classes(settings.paste_never, num_classes)
        self.register_buffer("running", torch.full((num_classes,), 0.5, dtype=torch.float64))

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: paste labelled pixels, label, mix, and learn from labelled images, then from mixed ones."""
        one, two = batch.unlabeled, batch.partner
        assert batch.labeled is not None
        assert one is not None
        assert two is not None
        labeled = self.pasted(batch.labeled, one)
        with self.teacher.training_pass() as teacher:
            scores_l = teacher.logits(labeled.image)
            scores = teacher.logits(torch.cat([one.weak, two.weak]))
        found_l = self.found(scores_l, labeled.mask != IGNORE, progress)
        found = self.found(scores, torch.cat([valid_pixels(one), valid_pixels(two)]), progress)
        views = torch.cat([part.weak if part.strong is None else part.strong[0] for part in (one, two)])
        donor, where = self.boxes(found, one)
        image, *mixed = (mix(x[: len(donor)], x[len(donor) :][donor], where) for x in (views, *found))
        found_u = Found(*mixed)

        logits_l = self.segmenter.logits(labeled.image)
        logits_u = self.segmenter.logits(image)
        self.follow_classes(logits_l, labeled.mask)
        weight = self.unlabeled_weight(progress)
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "labeled_consistency": weight * self.consistency(logits_l, found_l, progress),
            "unlabeled": weight * self.consistency(logits_u, found_u, progress),
        }
        return self.output(terms, labeled, found_u.labels, found_u.sure, found_u.valid)

    def found(self, scores: Logits, valid: Bool[Tensor, "b H W"], progress: Progress) -> Found:
        """What the teacher's scores say of images."""
        labels, sure = self.filter(scores, valid, progress)
        return Found(labels, scores.best()[0], sure, valid, self.target(scores, labels))

    def target(self, scores: Logits, labels: Int[Tensor, "b H W"]) -> Tensor:
        """What the loss compares with: here the labels."""
        return labels

    def losses(self, logits: Logits, found: Found) -> Float[Tensor, "b H W"]:
        """The loss of each pixel: here cross-entropy."""
        return logits.losses(found.target)

    def consistency(self, logits: Logits, found: Found, progress: Progress) -> Term:
        """A mean by weight over all pixels that are no padding; those that the filter holds back lose nothing."""
        weight = found.confidence.square().where(found.valid, 0)
        if self.rules.sampling:
            labels = logits.labels()
            weight = weight.where(kept(labels, self.running, uniform_map(labels, progress)), 0)
        return Term((weight * self.losses(logits, found).where(found.sure, 0)).sum(), weight.sum())

    def pasted(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> LabeledBatch:
        """Labelled images with the pixels of drawn classes of their neighbours; what was ignored stays so."""
        assert unlabeled.chance is not None
        order = torch.arange(len(labeled.image), device=labeled.image.device)
        key = key_of(unlabeled.chance)[order % len(unlabeled.chance)] + order // len(unlabeled.chance)
        probability = paste_probability(self.running, self.rules.paste_never)
        numbers = torch.arange(self.rules.paste_draws, device=key.device)
        classes = draw_class(probability, draws(key[:, None], _CLASSES, numbers))  # (l, draws)
        chosen = draws(key, _COIN) < self.rules.paste
        other = partners(len(order), order.device)
        where = of_classes(labeled.mask[other], classes) & chosen[:, None, None]
        image = mix(labeled.image, labeled.image[other], where)
        mask = mix(labeled.mask, labeled.mask[other], where & (labeled.mask != IGNORE))
        return replace(labeled, image=image, mask=mask)

    def boxes(self, found: Found, unlabeled: UnlabeledBatch) -> tuple[Int[Tensor, " u"], Bool[Tensor, "u H W"]]:
        """Which partner image each image gets a box of, and where.

        Args:
            found: in the images, then in the partner images.
            unlabeled: the images, with boxes for those that no region is found for.
        """
        assert unlabeled.boxes is not None
        assert unlabeled.chance is not None
        fallback, key = unlabeled.boxes[0], key_of(unlabeled.chance)
        size = unlabeled.weak.shape[2:]
        own = torch.arange(len(key), device=key.device)
        if not self.rules.adaptive_boxes:
            return own, box_masks(fallback, size)
        wanted = draw_class(box_probability(self.running), draws(key, _CLASSES))
        labels = found.labels[len(key) :].where(found.valid[len(key) :], IGNORE)
        gives = holds(labels, wanted, self.rules.class_area)
        donor = choose(gives, draws(key, _DONOR)).where(gives.any(1), own)
        region = labels[donor] == wanted[:, None, None]
        boxes, there = region_boxes(region, self.rules.region_area, draws(key, _REGION))
        return donor, box_masks(boxes[:, None].where(there[:, None, None], fallback), size)

    @torch.no_grad()
    def follow_classes(self, logits: Logits, mask: Int[Tensor, "l H W"]) -> None:
        """The classes' confidence after one more micro-batch; an absent class has none."""
        sure, _ = class_means((-logits.losses(mask)).exp(), mask, mask != IGNORE, len(self.running))
        self.running.lerp_(sure.to(self.running.dtype), 1 - self.rules.class_memory)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The others count weights, which the teacher gives."""
        return {name: count for name, count in super().counts(batch).items() if name == "labeled"}

    def health(self) -> dict[str, Tensor]:
        """The running confidence of each class too."""
        return super().health() | {"class_confidence": self.running}
