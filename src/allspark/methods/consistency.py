"""What methods have in common that label unlabelled images in training, and have other views agree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.config import methods as config
from allspark.kernels.batch_norm import statistics_kept
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.filters import PixelFilter
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

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: of labelled images alone while the others have no weight, else of both."""
        if self.unlabeled_weight(progress) > 0:
            return self.learn(batch, progress)
        labeled = batch.labeled
        assert labeled is not None
        loss = self.labeled_weight * self.labeled_loss(self.segmenter.logits(labeled.image), labeled.mask)
        return StepOutput(
            {"labeled": loss}, class_pixels=class_pixels(self.segmenter.num_classes, labeled=labeled.mask)
        )

    @abstractmethod
    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step of labelled and unlabelled images."""

    def guide(self, scores: Logits, num_labeled: int, progress: Progress) -> Guide | None:
        """As of all methods; the memory fills, and warms up, when the supervised warm-up is over."""
        begun = progress.step - round(self._supervised_epochs * progress.steps_per_epoch)
        return super().guide(scores, num_labeled, replace(progress, step=begun))

    def health(self) -> dict[str, Tensor]:
        """The threshold of each class too, where they differ."""
        thresholds = self.filter.thresholds
        return super().health() | ({} if thresholds is None else {"threshold": thresholds})


class MeanTeacher(Consistency):
    """A teacher labels, a moving average of the network's weights and statistics, and is what is deployed.

    Attributes:
        teacher: begins as the network and follows its updates.
    """

    def __init__(self, settings: config.MeanTeacher, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.teacher = Teacher(self.segmenter, settings.ema_decay, buffers="average")

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

    def decode(self, features: Features, labeled: int, strong: Sequence[int]) -> list[Logits]:
        """Logits of the labelled images, then of each strong view; how many images each has."""
        if not self._apart:
            return self.segmenter.decode(features).split([labeled, *strong])
        first, rest = features.split([labeled, sum(strong)])
        logits = self.segmenter.decode(first)
        with statistics_kept(self.segmenter.decoder):
            return [logits, *self.segmenter.decode(rest).split(strong)]
