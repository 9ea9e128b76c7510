"""PrevMatch (Shin et al., arXiv 2405.20610): UniMatch, with more labels, those of earlier students."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.history import History
from allspark.methods.mixing import valid_pixels
from allspark.methods.unimatch import PseudoLabels, Streams, UniMatch, trusted
from allspark.models.segmenter import Segmenter


class PrevMatch(UniMatch):
    """Each time that the network is the best so far, a copy of it is kept; a few of these label the weak views too.

    The copies, a random one to three of them, add their logits with random weights. UniMatch's streams have to say what
    they say as well, with a weight that rises over the first half of training and falls over the second. Which copies a
    step asks depends on its number alone, and is the same in every process.

    What is kept follows the validation scores, as published: validation images have a say in training. Without such
    images a copy is kept at each time of validation.
    """

    settings = config.PrevMatch

    def __init__(self, settings: config.PrevMatch, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.history = History(self.segmenter, settings.history)
        self.history_after = settings.history_after
        self.ensemble = settings.ensemble
        self.old_confidence = settings.old_confidence
        self.old_trust = settings.old_trust
        self.agreement = trusted(settings.old_trust, settings.old_trust_sums == "code")

    def after_validation(self, progress: Progress, best: bool) -> None:
        """Keep a copy of the network if it is the best so far."""
        if best and progress.epoch >= self.history_after:
            self.history.keep(self.segmenter)

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """UniMatch's step; and its streams learn the labels of earlier students, where there are some."""
        assert batch.labeled is not None
        streams = self.streams(batch, progress)
        old_weight = triangle(progress) if len(self.history) else 0.0
        share = 2 / (2 + old_weight)  # so that the weights of all terms add up to what they are without
        weight = share * self.unlabeled_weight(progress)
        terms = {"labeled": share * self.labeled_weight * self.labeled_loss(streams.labeled, batch.labeled.mask)}
        terms |= streams.agreement(streams.own, streams.other, weight)
        if len(self.history):
            terms |= self._of_the_past(streams, batch, progress, old_weight * weight)
        return self.output(terms, batch.labeled, streams.own.labels, streams.own.sure, streams.own.valid)

    def _of_the_past(self, streams: Streams, batch: TrainBatch, progress: Progress, weight: float) -> dict[str, Term]:
        """The terms of the labels that a few earlier students give together."""
        pair = self.pair(batch)
        images = torch.cat([part.weak for part in pair])
        scores = self.history.logits(images, self.history.draw(self.ensemble, progress.step))
        halves = scores.split([len(part.weak) for part in pair])
        own, other = (self._old_labels(*half) for half in zip(halves, map(valid_pixels, pair), strict=True))
        terms = streams.agreement(own, other, weight, self.agreement)
        return {f"old_{name}": term for name, term in terms.items()}

    def _old_labels(self, scores: Logits, valid: Tensor) -> PseudoLabels:
        confidence, labels = scores.best()
        sure = confidence if self.old_trust == "confidence" else confidence >= self.old_confidence
        return PseudoLabels(labels, sure, valid)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The labels of earlier students have the same pixels."""
        known = super().counts(batch)
        if len(self.history):
            known |= {f"old_{name}": count for name, count in known.items() if name != "labeled"}
        return known


def triangle(progress: Progress) -> float:
    """0 in the first epoch, 1 in the middle of training, and back: the weight of the past."""
    epochs = -(-progress.total_steps // progress.steps_per_epoch)
    half = epochs // 2
    if progress.epoch < half:
        return progress.epoch / half
    return 1 - (progress.epoch - half) / (epochs - half)
