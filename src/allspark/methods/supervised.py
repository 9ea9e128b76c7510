"""Supervised baseline: the labelled images alone (SegFormer, Xie et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

from allspark.batch import Progress, StepOutput, TrainBatch, Views
from allspark.config import methods as config
from allspark.methods.base import Method, class_pixels
from allspark.methods.teacher import Teacher
from allspark.models.ensemble import Network
from allspark.models.segmenter import Segmenter


class Supervised(Method):
    """Cross-entropy on the labelled crops.

    With ``ema_decay`` a moving average of the weights is deployed, as methods with a teacher do: so what they gain from
    unlabelled images can be told from what they gain by averaging.
    """

    settings = config.Supervised
    views = Views(unlabeled=False)

    def __init__(self, settings: config.Supervised, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        decay = getattr(settings, "ema_decay", None)  # a method of somebody else's on top of this may not have it
        self.average = None if decay is None else Teacher(self.segmenter, decay, buffers="average")

    def begin(self) -> None:
        """The average starts as the network."""
        if self.average is not None:
            self.average.begin(self.segmenter)

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: predict, compare with the mask."""
        labeled = batch.labeled
        assert labeled is not None
        loss = self.labeled_loss(self.segmenter.logits(labeled.image), labeled.mask)
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask)
        return StepOutput({"labeled": loss}, class_pixels=pixels)

    def after_step(self, progress: Progress) -> None:
        """The average follows."""
        if self.average is not None:
            self.average.follow(self.segmenter, progress)

    @property
    def deployed(self) -> Segmenter:
        """The average where there is one, else the network itself."""
        return self.segmenter if self.average is None else self.average.network

    def candidates(self) -> dict[str, Network]:
        """The network, and the average of its weights where there is one."""
        candidates: dict[str, Network] = {"network": self.segmenter}
        if self.average is not None:
            candidates["average"] = self.average.network
        return candidates
