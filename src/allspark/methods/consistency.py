"""What methods have in common that label unlabelled images in training, and have other views agree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from allspark.batch import IGNORE, LabeledBatch, Progress, StepOutput, Term, TrainBatch
from allspark.config import methods as config
from allspark.kernels.batch_norm import statistics_kept
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.filters import PixelFilter
from allspark.methods.mixing import mix_logits
from allspark.methods.ramps import unlabeled_weight
from allspark.methods.teacher import Teacher
from allspark.models.allspark import Guide
from allspark.models.segmenter import Features, Segmenter


class Consistency(Method):
    """The supervised warm-up, the weights of the losses, and which pseudo-labels count.

    Attributes:
        labeled_weight: of the loss of labelled images.
        unlabeled_weight: of the losses of unlabelled images together, as training stands: a function of `Progress`.
        filter: labels unlabelled images and says which of these labels count.
    """

    def __init__(self, settings: config.Consistency, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.labeled_weight = settings.labeled_weight
        self.unlabeled_weight = partial(unlabeled_weight, settings)
        self.filter = PixelFilter(settings, self.segmenter.num_classes)
        self._supervised_epochs = settings.supervised_epochs
        self._threshold = settings.confidence if settings.filter == "threshold" else None

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: of labelled images alone while the others have no weight, else of both."""
        if self.unlabeled_weight(progress) > 0:
            return self.learn(batch, progress)
        labeled = batch.labeled
        assert labeled is not None
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask)
        return StepOutput(self.learn_labeled(labeled), class_pixels=pixels)

    def learn_labeled(self, labeled: LabeledBatch) -> dict[str, Term]:
        """The terms of a step of labelled images alone."""
        loss = self.labeled_loss(self.segmenter.logits(labeled.image), labeled.mask)
        return {"labeled": self.labeled_weight * loss}

    def output(
        self,
        terms: Mapping[str, Term],
        labeled: LabeledBatch,
        labels: Int[Tensor, "u H W"],
        sure: Shaped[Tensor, "u H W"],
        valid: Bool[Tensor, "u H W"],
        **metrics: Tensor,
    ) -> StepOutput:
        """What a step of both kinds of images returns, with the share of the pixels whose labels counted (``kept``).

        Args:
            terms: of the loss.
            labeled: the labelled images.
            labels: pseudo-labels of the weak views.
            sure: which of them count, or how far each is trusted.
            valid: False where a crop was padded.
            metrics: what else to log.
        """
        pseudo = labels.where(valid, IGNORE)  # sure or not: a class is forgotten before it is unsure
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo)
        kept = (sure * valid).sum() / valid.sum().clamp(min=1)
        return StepOutput(terms, self.metrics() | {"kept": kept} | metrics, pixels)

    @abstractmethod
    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step of labelled and unlabelled images."""

    def guide(self, scores: Logits, num_labeled: int, progress: Progress) -> Guide | None:
        """As of all methods; the memory fills, and warms up, when the supervised warm-up is over."""
        begun = progress.step - round(self._supervised_epochs * progress.steps_per_epoch)
        return super().guide(scores, num_labeled, replace(progress, step=begun))

    @property
    def threshold(self) -> float | None:
        """As the settings say; None with a filter of another kind."""
        return self._threshold

    def health(self) -> dict[str, Tensor]:
        """The threshold of each class too, where they differ."""
        thresholds = self.filter.thresholds
        return super().health() | ({} if thresholds is None else {"threshold": thresholds})


class MeanTeacher(Consistency):
    """A teacher labels, a moving average of the network's weights and statistics, and is what is deployed.

    Attributes:
        teacher: begins as the network and follows its updates.
    """

    def __init__(
        self,
        settings: config.MeanTeacher,
        build: Callable[[], Segmenter],
        buffers: Literal["average", "own"] = "average",
    ) -> None:
        super().__init__(settings, build)
        self.teacher = Teacher(self.segmenter, settings.ema_decay, buffers)

    def begin(self) -> None:
        """The teacher starts as the student."""
        self.teacher.begin(self.segmenter)

    def after_step(self, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.follow(self.segmenter, progress)

    @property
    def deployed(self) -> Segmenter:
        """The teacher."""
        return self.teacher.network


class JointTeacher(MeanTeacher):
    """Labelled images and strong views pass the network together, or one after the other (``strong_pass``).

    They meet at the bottleneck in any case.
    """

    def __init__(self, settings: config.JointTeacher, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self._apart = settings.strong_pass == "apart"

    def encode(self, labeled: Float[Tensor, "l 3 H W"], strong: Float[Tensor, "s 3 H W"]) -> Features:
        """Features of l labelled images, then of s strong views."""
        if not self._apart:
            return self.segmenter.encode(torch.cat([labeled, strong]))
        first = self.segmenter.encode(labeled)
        with statistics_kept(self.segmenter.encoder):
            return Features.cat([first, self.segmenter.encode(strong)])

    def guide_mixed(
        self, scores: Logits, partner: Int[Tensor, " u"], where: Bool[Tensor, "u H W"], labeled: int, progress: Progress
    ) -> Guide | None:
        """What guides the bottleneck where images are mixed: the teacher's scores, mixed as they are.

        Args:
            scores: of the weak views.
            partner: the number of the image that is pasted into each.
            where: what is pasted.
            labeled: labelled images, which come first in the pass.
            progress: where training stands.
        """
        if self.segmenter.bottleneck is None:
            return None
        other = replace(scores, coarse=scores.coarse[partner])
        return self.guide(mix_logits(scores, other, where), labeled, progress)

    def decode(self, features: Features, labeled: int, strong: Sequence[int]) -> list[Logits]:
        """Logits of the labelled images, then of each strong view; how many images each has."""
        if not self._apart:
            return self.segmenter.decode(features).split([labeled, *strong])
        first, rest = features.split([labeled, sum(strong)])
        logits = self.segmenter.decode(first)
        with statistics_kept(self.segmenter.decoder):
            return [logits, *self.segmenter.decode(rest).split(strong)]
