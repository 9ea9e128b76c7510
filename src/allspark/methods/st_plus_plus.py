"""ST++ (Yang, Zhuo, Qi, Shi, Gao, CVPR 2022): training on pseudo masks that an earlier network made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from allspark.batch import IGNORE, Progress, StepOutput, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import UniMatchBoxes
from allspark.methods.base import Method, class_pixels
from allspark.methods.losses import cross_entropy
from allspark.models.segmenter import Segmenter


class STPlusPlus(Method):
    """One loss for labelled crops as they are and for pseudo-labelled ones in other colours, with a box cut out.

    The labels are made between the trainings, by ``allspark label``: this is one of them, from scratch; what is chosen
    when is a study (studies/st-plus-plus.yaml). The loss is the mean over all pixels that have a label, of both kinds.
    Published, one list holds the pseudo-labelled images and the labelled ones, repeated until they are as many, and a
    batch is drawn from it; here ``data.batch_labeled`` and ``data.batch_unlabeled`` say how many of each it has.
    """

    settings = config.STPlusPlus
    views = Views(labeled="weak", unlabeled=False, pseudo=True, cutout=UniMatchBoxes())

    def __init__(self, settings: config.STPlusPlus, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.views = replace(self.views, cutout=UniMatchBoxes(settings.cutout))

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: predict both kinds of crops in one pass, compare with their masks."""
        labeled, pseudo = batch.labeled, batch.pseudo
        assert labeled is not None
        assert pseudo is not None
        logits = self.segmenter.logits(torch.cat([labeled.image, pseudo.image]))
        logits_l, logits_p = logits.split([len(labeled.image), len(pseudo.image)])
        count = _labelled_pixels(batch)
        own = self.labeled_loss(logits_l, labeled.mask)
        terms = {
            # of hard pixels alone: half of the loss, as the mean of all has it where both kinds have as many pixels
            "labeled": 0.5 * own if self._mining else replace(own, count=count),
            "pseudo": replace(cross_entropy(logits_p, pseudo.mask), count=count),
        }
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo.mask)
        return StepOutput(terms, self.metrics(), pixels)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The pixels of both kinds count in both terms."""
        count = _labelled_pixels(batch)
        return {"pseudo": count} if self._mining else {"labeled": count, "pseudo": count}


def _labelled_pixels(batch: TrainBatch) -> Tensor:
    parts = (batch.labeled, batch.pseudo)
    return torch.stack([(part.mask != IGNORE).sum() for part in parts if part is not None]).sum()
