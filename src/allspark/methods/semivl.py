"""SemiVL (Hoyer et al., ECCV 2024): UniMatch, with more labels, those that CLIP reads off the names of the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, UnlabeledBatch
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import valid_pixels
from allspark.methods.unimatch import PseudoLabels, Streams, UniMatch, trusted
from allspark.models.clip import ClipLabeler
from allspark.models.segmenter import Segmenter


class SemiVL(UniMatch):
    """The losses of SemiVL on any network: its own encoder and decoder, which are made of CLIP, are not here.

    A frozen CLIP labels the weak views, as far as it is sure of them. UniMatch's streams have to say what it says too,
    with a weight that falls to nothing over the training. Without a CLIP model this is UniMatch, and its ways to trust
    labels.
    """

    settings = config.SemiVL

    def __init__(self, settings: config.SemiVL, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.clip = None
        if settings.clip != "none":
            network = self.segmenter
            self.clip = ClipLabeler(settings.clip, network.normalisation, settings.concepts, network.num_classes)
        self.clip_confidence = settings.clip_confidence
        self.clip_weight = settings.clip_weight
        self.clip_mean = settings.clip_mean
        self.trust = settings.trust
        self.agreement = trusted(settings.trust, settings.trust_sums == "code")

    def name_classes(self, names: Sequence[str]) -> None:
        """CLIP reads them."""
        if self.clip is not None:
            self.clip.read(names)

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """UniMatch's step; and its streams learn CLIP's labels, where there is one."""
        assert batch.labeled is not None
        streams = self.streams(batch, progress)
        own, other = streams.own, streams.other
        terms = {"labeled": self.labeled_weight * self.labeled_loss(streams.labeled, batch.labeled.mask)}
        terms |= streams.agreement(own, other, self.unlabeled_weight(progress), self.agreement)
        if self.clip is not None:
            terms |= self._guidance(streams, batch, progress)
        return self.output(terms, batch.labeled, own.labels, own.sure, own.valid)

    def label(self, scores: Logits, batch: UnlabeledBatch, progress: Progress) -> PseudoLabels:
        """As UniMatch does; with their probabilities, where these weigh the images."""
        given = super().label(scores, batch, progress)
        return replace(given, sure=scores.best()[0]) if self.trust == "confidence" else given

    def _guidance(self, streams: Streams, batch: TrainBatch, progress: Progress) -> dict[str, Term]:
        """The terms of CLIP's labels."""
        assert self.clip is not None
        pair = self.pair(batch)
        scores = self.clip(torch.cat([part.weak for part in pair])).split([len(part.weak) for part in pair])
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        own, other = (self._clip_labels(*each) for each in zip(scores, map(valid_pixels, pair), strict=True))
        done = progress.step / progress.total_steps
        weight = (1 - done) * self.clip_weight[0] + done * self.clip_weight[1]
        return {f"clip_{name}": term for name, term in streams.agreement(own, other, weight, self._clip_loss).items()}

    def _clip_labels(self, scores: Logits, valid: Tensor) -> PseudoLabels:
        confidence, labels = scores.best()
        return PseudoLabels(labels, confidence >= self.clip_confidence, valid)

    def _clip_loss(self, logits: Logits, target: PseudoLabels) -> Term:
        sure = target.sure & target.valid
        over = {"labels": sure, "valid": target.valid, "all": None}[self.clip_mean]
        return masked_cross_entropy(logits, target.labels, sure, over)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """CLIP's labels have the same pixels, or all; how many of them count is not known before."""
        known = super().counts(batch)
        if self.clip is None or self.clip_mean == "labels":
            return known
        own = {name: count for name, count in known.items() if name != "labeled"}
        if self.clip_mean == "all":
            own = {name: count.new_tensor(valid_pixels(self.pair(batch)[0]).numel()) for name, count in own.items()}
        return known | {f"clip_{name}": count for name, count in own.items()}
