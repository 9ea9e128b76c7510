"""Cross pseudo supervision (Chen, Yuan, Zeng, Wang, CVPR 2021), with and without CutMix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import FrenchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.mixing import box_masks, mix
from allspark.models.ensemble import Ensemble, Network
from allspark.models.segmenter import Segmenter


class CPS(Method):
    """Two networks that began differently; each learns what the other says, every pixel, sure or not.

    Without CutMix they learn it of labelled and unlabelled images, with CutMix of mixes of two unlabelled images alone.
    Padding counts too, as published. The first network is evaluated and kept.
    """

    settings: ClassVar[type[config.CrossSupervision]] = config.CPS

    def __init__(self, settings: config.CrossSupervision, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.second = build()
        self.cross_weight = settings.cross_weight
        self.cutmix = settings.cutmix
        boxes = FrenchBoxes(count=3, area=(0.25, 0.5)) if self.cutmix else None
        self.views = Views(labeled="weak", boxes=boxes, partner=self.cutmix)

    def networks(self) -> tuple[Segmenter, ...]:
        """Both train."""
        return self.segmenter, self.second

    def candidates(self) -> dict[str, Network]:
        """Each of the two, and the mean of what they say."""
        return {"first": self.segmenter, "second": self.second, "mean": Ensemble(self.networks())}

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: both networks see the same images, labelled and unlabelled ones apart."""
        labeled = batch.labeled
        assert labeled is not None
        if self.cutmix:
            image, targets = self._mixed(batch)
            crossed = [network.logits(image) for network in self.networks()]
            logits_l = [network.logits(labeled.image) for network in self.networks()]
            pseudo = slice(None)
        else:
            assert batch.unlabeled is not None
            logits_l, crossed = [], []
            for network in self.networks():
                logits_l.append(network.logits(labeled.image))
                unlabeled = network.logits(batch.unlabeled.weak)
                crossed.append(replace(unlabeled, coarse=torch.cat([logits_l[-1].coarse, unlabeled.coarse])))
            targets = [self.target(logits) for logits in crossed]
            pseudo = slice(len(labeled.image), None)
        losses = self.cross_losses(crossed, targets)
        terms = {}
        for end, own, cross in zip(("", "_2"), logits_l, losses, strict=True):
            terms[f"labeled{end}"] = self.labeled_loss(own, labeled.mask)
            terms[f"cross{end}"] = self.cross_weight * Term(cross.sum(), labeled.mask.new_tensor(cross.numel()))
        labels = [self.labels(target[pseudo]) for target in targets]
        agreement = (labels[0] == labels[1]).double().mean()
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=labels[0])
        return StepOutput(terms, {"networks_agree": agreement}, pixels)

    def target(self, logits: Logits) -> Tensor:
        """What the other network learns of these logits: here the best class of every pixel (b, H, W)."""
        return logits.labels()

    def labels(self, target: Tensor) -> Int[Tensor, "b H W"]:
        """The best class of every pixel."""
        return target

    def cross_losses(self, logits: Sequence[Logits], targets: Sequence[Tensor]) -> list[Tensor]:
        """What each network loses against the other's target in every pixel, (b, H, W) each: here cross-entropy."""
        return [own.losses(other) for own, other in zip(logits, reversed(targets), strict=True)]

    def _mixed(self, batch: TrainBatch) -> tuple[Tensor, list[Tensor]]:
        """A mix of two unlabelled batches, and the target that each network gives it, in train mode as published."""
        one, two = batch.unlabeled, batch.partner
        assert one is not None
        assert one.boxes is not None
        assert two is not None
        where = box_masks(one.boxes[0], one.weak.shape[2:])
        targets = []
        with torch.no_grad():
            for network in self.networks():
                own, other = (self.target(network.logits(part.weak)) for part in (one, two))
                targets.append(mix(own, other, where))
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        return mix(one.weak, two.weak, where), targets

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """All pixels count in the cross loss."""
        known = super().counts(batch)
        del known["unlabeled"]
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        cross = batch.unlabeled.weak[:, 0].numel() + (0 if self.cutmix else batch.labeled.mask.numel())
        known |= {f"{name}_2": count for name, count in known.items()}
        return known | dict.fromkeys(("cross", "cross_2"), batch.labeled.mask.new_tensor(cross))
