"""A reconstruction of LogicDiag (Liang, Wang, Miao, Yang, ICCV 2023) from what is known of it; see its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from allspark.batch import IGNORE, Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.consistency import MeanTeacher
from allspark.methods.hierarchy import classes_below
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import pasted, valid_pixels, view_boxes
from allspark.methods.teacher import Average
from allspark.models.segmenter import Segmenter


class LogicDiag(MeanTeacher):
    """The network also says which parents of a class hierarchy a pixel belongs to, and is believed where that is surer.

    What it says of classes and parents can contradict the rules: a class has its parents, a parent one of its children,
    and no two of these. The consistent states are one for each class, with its parents. The likeliest of them, by the
    product of what the teacher gives each class and parent, is the pseudo-label of a strong view with CutMix.
    """

    settings = config.LogicDiag
    members: Tensor

    def __init__(self, settings: config.LogicDiag, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        boxes = UniMatchBoxes(settings.cutmix)
        self.views = Views(labeled=settings.labeled_views, strong=1, boxes=boxes, colours=settings.colours)
        self.hierarchy = settings.hierarchy
        self.parent_weight = settings.parent_weight
        self.parents = nn.Conv2d(self.segmenter.hidden_channels, len(self.hierarchy) or 1, 1)
        self.parents_teacher = Average(self.parents, settings.ema_decay)
        self.register_buffer("members", torch.zeros(self.parents.out_channels, self.segmenter.num_classes))

    def name_classes(self, names: Sequence[str]) -> None:
        """Find the hierarchy's classes among those of the data set."""
        for row, below in zip(self.members, classes_below(self.hierarchy, names), strict=True):
            row[below] = 1

    def begin(self) -> None:
        """The teacher starts as the student, in what it says of parents too."""
        super().begin()
        self.parents_teacher.begin(self.parents)

    def after_step(self, progress: Progress) -> None:
        """Both follow."""
        super().after_step(progress)
        self.parents_teacher.follow(self.parents, progress)

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label weak views, revise the labels, learn from labelled images and mixed strong views together."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        (where,) = view_boxes(unlabeled)
        scores, parents = self._teacher_scores(unlabeled.weak)
        revised, valid = diagnosed(scores, parents, self.members), valid_pixels(unlabeled)
        labels, sure = self.filter(revised, valid, progress)
        changed = ((labels != scores.labels()) & valid).sum() / valid.sum().clamp(min=1)
        labels, sure, valid, strong = (pasted(x, where) for x in (labels, sure, valid, unlabeled.strong[0]))

        count = len(labeled.image)
        hidden, logits = self.segmenter.hidden_and_logits(torch.cat([labeled.image, strong]))
        logits_l, logits_u = logits.split([count, len(strong)])
        parents_l = replace(logits_l, coarse=self.parents(hidden[:count]))
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "labeled_parents": self.parent_weight * parents_loss(parents_l, labeled.mask, self.members),
            "unlabeled": self.unlabeled_weight(progress) * masked_cross_entropy(logits_u, labels, sure, valid),
        }
        return self.output(terms, labeled, labels, sure, valid, revised=changed)

    @torch.no_grad()
    def _teacher_scores(self, image: Float[Tensor, "u 3 H W"]) -> tuple[Logits, Logits]:
        """What the teacher says of classes and of parents."""
        network = self.teacher.network
        hidden, scores = network.hidden_and_logits(image)
        parents = replace(scores, coarse=self.parents_teacher.network(hidden))
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        return scores, parents

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are; parents are said of all labelled pixels."""
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        (where,) = view_boxes(batch.unlabeled)
        counts = super().counts(batch) | {"unlabeled": pasted(valid_pixels(batch.unlabeled), where).sum()}
        return counts | {"labeled_parents": (batch.labeled.mask != IGNORE).sum()}


def diagnosed(scores: Logits, parents: Logits, members: Float[Tensor, "m k"]) -> Logits:
    """Logits of the consistent states, whose softmax is how likely each is among them.

    A state is a class with its parents. Its likelihood is the class's probability times that of each of its parents,
    times one less the probability of each other parent. Up to what all states have in common, its logarithm is the
    class's logit and those of its parents, added; adding and enlarging can change places.

    Args:
        scores: of the classes.
        parents: of the m parents, each against its opposite.
        members: 1 where a parent is above a class.
    """
    above = torch.einsum("bmhw,mk->bkhw", parents.coarse, members.to(parents.coarse.dtype))
    return replace(scores, coarse=scores.coarse + above)


def parents_loss(parents: Logits, mask: Int[Tensor, "l H W"], members: Float[Tensor, "m k"]) -> Term:
    """Binary cross-entropy, a mean over parents, and over pixels that are not ignored."""
    valid = mask != IGNORE
    target = members.T[mask.where(valid, 0)].movedim(-1, 1)  # (l, m, H, W)
    logits = parents.full()
    losses = F.binary_cross_entropy_with_logits(logits.to(target.dtype), target, reduction="none").mean(1)
    return Term(losses.where(valid, 0).sum(), valid.sum())
