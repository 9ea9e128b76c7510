"""Cross pseudo supervision (Chen, Yuan, Zeng, Wang, CVPR 2021), with and without CutMix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import FrenchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.losses import cross_entropy
from allspark.methods.mixing import box_masks, mix
from allspark.models.ensemble import Ensemble, Network
from allspark.models.segmenter import Segmenter


class CPS(Method):
    """Two networks that began differently; each learns what the other says, every pixel, sure or not.

    Without CutMix they learn it of labelled and unlabelled images, with CutMix of mixes of two unlabelled images alone.
    Padding counts too, as published. The first network is evaluated and kept.
    """

    settings = config.CPS

    def __init__(self, settings: config.CPS, build: Callable[[], Segmenter]) -> None:
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
            image, labels = self._mixed(batch)
            logits_u = [network.logits(image) for network in self.networks()]
            cross = [cross_entropy(logits_u[0], labels[1]), cross_entropy(logits_u[1], labels[0])]
            logits_l = [network.logits(labeled.image) for network in self.networks()]
        else:
            assert batch.unlabeled is not None
            logits_l, logits_u = [], []
            for network in self.networks():
                logits_l.append(network.logits(labeled.image))
                logits_u.append(network.logits(batch.unlabeled.weak))
            cross = [_crossed(logits_l, a) + _crossed(logits_u, a) for a in (0, 1)]
            labels = [logits.labels() for logits in logits_u]
        terms = {}
        for end, own, other in zip(("", "_2"), logits_l, cross, strict=True):
            terms[f"labeled{end}"] = self.labeled_loss(own, labeled.mask)
            terms[f"cross{end}"] = self.cross_weight * other
        agreement = (labels[0] == labels[1]).double().mean()
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=labels[0])
        return StepOutput(terms, {"networks_agree": agreement}, pixels)

    def _mixed(self, batch: TrainBatch) -> tuple[Tensor, list[Tensor]]:
        """A mix of two unlabelled batches, and the labels that each network gives it, in train mode as published."""
        one, two = batch.unlabeled, batch.partner
        assert one is not None
        assert one.boxes is not None
        assert two is not None
        where = box_masks(one.boxes[0], one.weak.shape[2:])
        labels = []
        with torch.no_grad():
            for network in self.networks():
                labels.append(mix(network.logits(one.weak).labels(), network.logits(two.weak).labels(), where))
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        return mix(one.weak, two.weak, where), labels

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """All pixels count in the cross loss."""
        known = super().counts(batch)
        del known["unlabeled"]
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        cross = batch.unlabeled.weak[:, 0].numel() + (0 if self.cutmix else batch.labeled.mask.numel())
        known |= {f"{name}_2": count for name, count in known.items()}
        return known | dict.fromkeys(("cross", "cross_2"), batch.labeled.mask.new_tensor(cross))


def _crossed(logits: Sequence[Logits], which: int) -> Term:
    """What one network loses against the other's labels."""
    return cross_entropy(logits[which], logits[1 - which].labels())
