"""CCVC (Wang et al., *Conflict-Based Cross-View Consistency for Semi-Supervised Semantic Segmentation*, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels, eval_logits, hard_labels
from allspark.methods.mixing import pasted, valid_pixels, view_boxes
from allspark.models.ensemble import Ensemble, Network
from allspark.models.mapped import MappedSegmenter
from allspark.models.segmenter import Segmenter

_ENDS = ("", "_2")  # of the names of both networks' terms


class CCVC(Method):
    """Two networks whose features are pushed apart; each learns what the other says of a weak and of a strong view.

    Pixels where the other says something else, and is sure of it, count more. The strong view has boxes of the one at
    its place in the reversed micro-batch of the process. Cross losses are means over all pixels that are no padding;
    the likeness of features is one over all. The first network is evaluated and kept.
    """

    settings = config.CCVC

    def __init__(self, settings: config.CCVC, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.second = MappedSegmenter(build(), settings.mapping_dropout)
        self.labeled_weight, self.cross_weight = settings.labeled_weight, settings.cross_weight
        self.discrepancy_weight, self.conflict_weight = settings.discrepancy_weight, settings.conflict_weight
        self.confidence = settings.confidence
        self.as_paper = settings.conflict == "paper"
        self.views = Views(labeled="weak", strong=1, boxes=UniMatchBoxes(settings.cutmix))

    def networks(self) -> tuple[Segmenter, ...]:
        """Both train."""
        return self.segmenter, self.second

    def candidates(self) -> dict[str, Network]:
        """Each of the two, and the mean of what they say."""
        return {"first": self.segmenter, "second": self.second, "mean": Ensemble(self.networks())}

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: both networks see labelled images, mixed strong views and weak views, one after the other."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        (where,) = view_boxes(unlabeled)
        valid = valid_pixels(unlabeled)
        before = [eval_logits(network, unlabeled.weak) for network in self.networks()]
        conflicts = self._conflicts(before)
        if self.as_paper:
            conflicts = [pasted(conflict, where) for conflict in conflicts]

        terms: dict[str, Term] = {}
        logits, likeness = self._seen(labeled.image)
        for end, own in zip(_ENDS, logits, strict=True):
            terms[f"labeled{end}"] = self.labeled_weight / 2 * self.labeled_loss(own, labeled.mask)
        terms["alike_labeled"] = self.discrepancy_weight / 2 * likeness
        logits, likeness = self._seen(pasted(unlabeled.strong[0], where))
        labels = [pasted(one.labels(), where) for one in before]
        terms |= self._crossed("cross", logits, labels, conflicts, pasted(valid, where))
        terms["alike_strong"] = self.discrepancy_weight / 4 * likeness
        logits, likeness = self._seen(unlabeled.weak)
        terms |= self._crossed("weak", logits, [one.labels() for one in logits], self._conflicts(logits), valid)
        terms["alike_weak"] = self.discrepancy_weight / 4 * likeness

        share = (conflicts[0] | conflicts[1]).double().mean()
        pseudo = hard_labels(before[0], unlabeled)
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo)
        return StepOutput(terms, {"conflict": share}, pixels)

    def _seen(self, image: Float[Tensor, "b 3 H W"]) -> tuple[list[Logits], Term]:
        """Logits of both networks, and how alike the features are that their classifiers read."""
        logits, hidden = [], []
        for network in self.networks():
            read, said = network.hidden_and_logits(image)
            hidden.append(read)
            logits.append(said)
        return logits, likeness(*hidden)

    def _conflicts(self, logits: list[Logits]) -> list[Tensor]:
        """Pixels where the networks disagree and the first is sure, then those where the second is; (u, H, W) each."""
        disagree = logits[0].labels() != logits[1].labels()
        sure = [one.best()[0] if self.as_paper else _highest(one) for one in logits]
        return [disagree & (one > self.confidence) for one in sure]

    def _crossed(
        self, name: str, logits: list[Logits], labels: list[Tensor], conflicts: list[Tensor], valid: Tensor
    ) -> dict[str, Term]:
        """What each network loses against the other's labels."""
        terms = {}
        for own, other in ((0, 1), (1, 0)):
            weight = torch.where(conflicts[other], self.conflict_weight, 1.0).where(valid, 0)
            total = (weight * logits[own].losses(labels[other])).sum()
            terms[f"{name}{_ENDS[own]}"] = self.cross_weight / 4 * Term(total, valid.sum())
        return terms

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Padding is mixed as the images are; features are compared image by image."""
        known = super().counts(batch)
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        known["weak"], valid = known.pop("unlabeled"), valid_pixels(batch.unlabeled)
        known["cross"] = pasted(valid, view_boxes(batch.unlabeled)[0]).sum()
        known |= {f"{name}_2": count for name, count in known.items()}
        images = {"labeled": len(batch.labeled.mask), "strong": len(valid), "weak": len(valid)}
        return known | {f"alike_{name}": valid.new_tensor(count, dtype=torch.int64) for name, count in images.items()}


def likeness(one: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]) -> Term:
    """1 + cosine of two networks' features, a mean over images of means over positions; half the gradient to each."""
    wide = torch.promote_types(one.dtype, torch.float32)
    one, other = one.to(wide), other.to(wide)
    cosine = F.cosine_similarity(one, other.detach()) + F.cosine_similarity(one.detach(), other)
    alike = 1 + cosine.mean((1, 2)) / 2
    return Term(alike.sum(), torch.tensor(len(alike), device=alike.device))


@torch.no_grad()
def _highest(logits: Logits) -> Float[Tensor, "b H W"]:
    """The highest logit of every pixel."""
    wide = torch.promote_types(logits.coarse.dtype, torch.float32)
    out = logits.coarse.new_empty(len(logits.coarse), *logits.size, dtype=wide)
    for images, rows, band in logits.bands():
        out[images, rows] = band.amax(1)
    return out
