"""What methods have in common that label unlabelled images in training, and have other views agree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from allspark.batch import Progress, StepOutput, TrainBatch
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.filters import PixelFilter
from allspark.methods.ramps import unlabeled_weight
from allspark.methods.teacher import Teacher
from allspark.models.allspark import Guide
from allspark.models.segmenter import Segmenter


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
