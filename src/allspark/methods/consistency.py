"""What methods have in common that label unlabelled images in training, and have other views agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from allspark.config import methods as config
from allspark.methods.base import Method
from allspark.methods.filters import PixelFilter
from allspark.methods.ramps import unlabeled_weight
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
