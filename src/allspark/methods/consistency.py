"""What methods have in common that label unlabelled images in training, and have other views agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from allspark.batch import Progress
from allspark.config import methods as config
from allspark.methods.base import Method
from allspark.methods.filters import PixelFilter
from allspark.methods.ramps import unlabeled_weight
from allspark.methods.teacher import Teacher
from allspark.models.segmenter import Segmenter


class Consistency(Method):
    """The weights of the losses, and which pseudo-labels count.

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
