"""U2PL (Wang, Wang, Shen et al., *Using Unreliable Pseudo-Labels*, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from allspark.batch import IGNORE, Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import HalfBoxes
from allspark.kernels.logits import Logits
from allspark.methods.bank import ClassBank, nth_members
from allspark.methods.contrast import (
    ContrastTeacher,
    at_grid,
    gather_images,
    info_nce,
    places,
    shared_rows,
    uniform,
)
from allspark.methods.losses import reliable_cross_entropy
from allspark.methods.mixing import pasted_next, valid_pixels, view_boxes
from allspark.methods.pixel_roles import Roles, entropy_masks, matched_classes, pixel_roles
from allspark.methods.teacher import Average
from allspark.models.segmenter import Segmenter

_ANCHORS, _NEGATIVES = 0, 1  # what numbers are drawn for


class U2PL(ContrastTeacher):
    """What the teacher is sure of is learned as a hard label; what it is unsure of, it still is sure not to be.

    Unsure pixels fill a bank of each class that they probably are not of. Projections of sure pixels have to be like
    the teacher's mean projection of their class, and unlike what the bank of the class holds. Negatives and anchors are
    drawn from those of all processes, by numbers that follow from the step.
    """

    settings = config.U2PL

    def __init__(self, settings: config.U2PL, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build, kernels=(3, 3), dropout=settings.projection_dropout)
        self.views = Views(labeled=settings.labeled_views, boxes=HalfBoxes(settings.cutmix))
        self.own = settings
        self.teacher_projection = Average(self.projection, settings.ema_decay, buffers="own")
        first, other = settings.bank_sizes
        sizes = [first] + [other] * (self.segmenter.num_classes - 1)
        self.bank = ClassBank(sizes, settings.projection_channels, "method.bank_sizes")

    def begin(self) -> None:
        """The teacher starts as the student, and so does its projection."""
        super().begin()
        self.teacher_projection.begin(self.projection)

    def after_step(self, progress: Progress) -> None:
        """Both follow."""
        super().after_step(progress)
        self.teacher_projection.follow(self.projection, progress)

    def teach(self, image: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b d h w"], Logits]:
        """The projection of what the teacher's classifier reads in training mode, and what it makes of that."""
        hidden, logits = super().teach(image)
        with self.teacher_projection.training_pass() as projection:
            return projection(hidden), logits

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label and mix unlabelled images, let student and teacher see the same, contrast their pixels."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        (where,) = view_boxes(unlabeled)
        labels = pasted_next(self.teacher.logits(unlabeled.weak).labels(), where)
        valid = pasted_next(valid_pixels(unlabeled), where)
        image = torch.cat([labeled.image, pasted_next(unlabeled.weak, where)])
        parts = [len(labeled.image), len(labels)]

        hidden, logits = self.segmenter.hidden_and_logits(image)
        projected = self.projection(hidden)
        taught, scores = self.teach(image)
        logits_l, logits_u = logits.split(parts)
        scores_u = scores.split(parts)[1]
        _, sure = self.filter(scores_u, valid, progress)

        target = torch.cat([labeled.mask, labels.where(valid, IGNORE)])
        share = _between(self.own.contrast_share, progress)
        low, high = entropy_masks(scores_u, target, valid, share)
        roles = pixel_roles(at_grid(target, scores, IGNORE), low, high, scores, parts[0], self.own)
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress) * reliable_cross_entropy(logits_u, labels, sure, valid),
            "contrast": self.contrast_weight * self.contrast(projected, taught, roles, parts[0], progress.step),
        }
        return self.output(terms, labeled, labels, sure, valid, bank_fill=self.bank_fill.mean())

    def contrast(
        self,
        projected: Float[Tensor, "b d h w"],
        taught: Float[Tensor, "b d h w"],
        roles: Roles,
        labeled: int,
        step: int,
    ) -> Term:
        """Fill the bank, then compare pixels of the student with it and with the means of the teacher's.

        Args:
            projected: by the student, with gradient.
            taught: the teacher's, of the same images.
            roles: of these pixels.
            labeled: labelled images, which come first.
            step: number of the update.
        """
        own = self.own
        members, anchors, keys = (gather_images(x, labeled).flatten(0, 2).mT for x in roles.all())  # (k, n)
        rows = gather_images(taught.permute(0, 2, 3, 1), labeled).flatten(0, 2)  # (n, d)
        self.bank.push(rows, keys)
        compared, bank = matched_classes(members.any(1), own.contrast_rule)
        room = self.bank.count[bank]
        counted = compared & anchors.any(1) & (room > 0)  # (k,)
        classes = len(members)
        drawn = uniform((classes, own.anchors), step, _ANCHORS, rows.device)
        chosen = nth_members(anchors, places(drawn, anchors.sum(1)))
        drawn = uniform((classes, own.anchors * own.negatives), step, _NEGATIVES, rows.device)
        negatives = self.bank.at(places(drawn, room), bank).to(rows.dtype).unflatten(1, (own.anchors, own.negatives))
        with torch.autocast(rows.device.type, enabled=False):
            means = members.to(rows.dtype) @ rows / members.sum(1, keepdim=True).clamp(min=1)  # (k, d)
            anchor = shared_rows(projected.permute(0, 2, 3, 1), chosen, labeled)[:, :, None]  # (k, a, 1, d)
            losses = info_nce(anchor, means[:, None, None], negatives, own.temperature).mean((1, 2))
        total = losses.where(counted, 0).sum() / compared.sum().clamp(min=1)
        return Term(total, torch.ones_like(total.detach()))

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are."""
        assert batch.unlabeled is not None
        (where,) = view_boxes(batch.unlabeled)
        return super().counts(batch) | {"unlabeled": pasted_next(valid_pixels(batch.unlabeled), where).sum()}


def _between(ends: tuple[float, float], progress: Progress) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress.step / progress.total_steps
