"""PC2Seg (Zhong, Yuan, Wu, Yuan, Peng, Wang, ICCV 2021), reconstructed: no code is public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from allspark.batch import IGNORE, Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.contrast import at_grid, info_nce, places, uniform
from allspark.methods.losses import distance
from allspark.methods.mixing import valid_pixels
from allspark.models.projection import ProjectionHead
from allspark.models.segmenter import Segmenter
from allspark.runtime.collectives import all_gather, rank

_NEGATIVES = 4  # what numbers are drawn for


class PC2Seg(Method):
    """The strong view has to say what the weak one says, and each of its pixels has to be like that of the weak view.

    Unlike it has to be pixels of other images, of all processes, that have another pseudo-label. The weak view has no
    gradient in either loss.
    """

    settings = config.PC2Seg

    def __init__(self, settings: config.PC2Seg, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = Views(labeled=settings.labeled_views, strong=1, compared=True)
        self.own = settings
        self.projection = ProjectionHead(self.segmenter.hidden_channels, settings.projection_channels)

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: labelled images, weak and strong views in one pass."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        valid, parts = valid_pixels(unlabeled), [len(labeled.image), *2 * [len(unlabeled.weak)]]
        images = torch.cat([labeled.image, unlabeled.weak, unlabeled.strong[0]])
        hidden, logits = self.segmenter.hidden_and_logits(images)
        logits_l, logits_w, logits_s = logits.split(parts)
        _, weak, strong = self.projection(hidden).split(parts)
        target = logits_w.full().detach()
        away = distance(logits_s, target.to(torch.promote_types(target.dtype, torch.float32)), "squared")
        contrast = self.contrast(strong, weak.detach(), logits_w, valid, progress.step)
        count = valid.new_tensor(len(valid), dtype=torch.int64)
        terms = {
            "labeled": self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.own.consistency_weight * Term(away.where(valid, 0).sum(), valid.sum()),
            "contrast": self.own.contrast_weight * Term(contrast.sum(), count),
        }
        pseudo = logits_w.labels().where(valid, IGNORE)
        return StepOutput(terms, {}, class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo))

    def contrast(
        self,
        strong: Float[Tensor, "u d h w"],
        weak: Float[Tensor, "u d h w"],
        scores: Logits,
        valid: Tensor,
        step: int,
    ) -> Float[Tensor, " u"]:
        """How little the pixels of each strong view are like those of the weak one: a mean over its valid pixels.

        Args:
            strong: projections, with gradient.
            weak: the same of the weak views, without.
            scores: of the weak views.
            valid: (u, H, W), False where a crop was padded.
            step: number of the update.
        """
        grid = (weak.shape[2], weak.shape[3])
        labels = replace(scores, padded=grid, size=grid).labels()
        labels = labels.where(at_grid(valid, scores, 0), IGNORE).flatten(1)  # (u, n)
        anchors, positives = (x.flatten(2).mT for x in (strong, weak))  # (u, n, d)
        rows, known = all_gather(positives).flatten(0, 1), all_gather(labels).flatten()
        images, pixels = len(rows) // labels.shape[1], labels.shape[1]
        drawn = uniform((images, self.own.negatives), step, _NEGATIVES, rows.device)
        others = places(drawn, labels.new_full((images,), (images - 1) * pixels))
        first = torch.arange(images, device=rows.device)[:, None] * pixels
        others = others + pixels * (others >= first)  # no pixel of the image itself
        others = others[rank() * len(labels) :][: len(labels)] % len(rows)  # of this process's images
        theirs = known[others][:, None]  # (u, 1, m)
        counted = (theirs != labels[..., None]) & (theirs != IGNORE) & (images > 1)
        with torch.autocast(rows.device.type, enabled=False):
            losses = info_nce(anchors, positives, rows[others], self.own.temperature, counted)
        sure = labels != IGNORE
        return losses.where(sure, 0).sum(1) / sure.sum(1).clamp(min=1)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The contrast is a mean over the images."""
        assert batch.unlabeled is not None
        images = torch.ones_like(batch.unlabeled.weak[:, 0, 0, 0], dtype=torch.int64)
        return super().counts(batch) | {"contrast": images.sum()}
