"""PS-MT (Liu et al., *Perturbed and Strict Mean Teachers for Semi-supervised Semantic Segmentation*, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import BetaBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels, hard_labels
from allspark.methods.mixing import pasted_next, valid_pixels, view_boxes
from allspark.methods.perturbations import adversarial_noise
from allspark.methods.ramps import ramp
from allspark.methods.teacher import follow
from allspark.models.ensemble import Ensemble, Network
from allspark.models.segmenter import Features, Segmenter


class PSMT(Method):
    """Two teachers label weak views together; the student has to say the same of mixed strong ones, with noise.

    In a warm-up all three learn from labelled images, each in an update of its own. Then the teachers, in training
    mode, follow the student in turn, one in each epoch. Labels that they are sure of count by their confidence, and the
    loss is a mean over these pixels. The first teacher is evaluated and kept.
    """

    settings = config.PSMT
    phases: ClassVar[int] = 3  # of the student and of each teacher

    def __init__(self, settings: config.PSMT, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.teacher, self.teacher_2 = build(), build()
        self.unlabeled_weight, self.confidence = settings.unlabeled_weight, settings.confidence
        self.supervised_epochs, self.ramp_epochs = settings.supervised_epochs, settings.ramp_epochs
        self.top_classes = settings.top_classes
        self.noise, self.noise_probe = settings.noise, settings.noise_probe
        self.ema_decay = settings.ema_decay
        boxes = BetaBoxes() if settings.cutmix else None
        self.views = Views(labeled=settings.labeled_views, strong=1, boxes=boxes)

    def begin(self) -> None:
        """Without a warm-up the teachers start as the student."""
        if self.supervised_epochs == 0:
            for teacher in self.teachers:
                teacher.load_state_dict(self.segmenter.state_dict())

    @property
    def teachers(self) -> tuple[Segmenter, Segmenter]:
        """Both."""
        return self.teacher, self.teacher_2

    def networks(self) -> tuple[Segmenter, ...]:
        """All three, since the teachers learn from labels first."""
        return self.segmenter, *self.teachers

    @property
    def deployed(self) -> Segmenter:
        """The first teacher."""
        return self.teacher

    def candidates(self) -> dict[str, Network]:
        """Student and teachers, and the mean of what the teachers say."""
        known: dict[str, Network] = {"student": self.segmenter, "teacher": self.teacher, "teacher_2": self.teacher_2}
        return known | {"mean": Ensemble(self.teachers)}

    def phases_of(self, progress: Progress) -> Sequence[int]:
        """The teachers learn in the warm-up alone."""
        return range(self.phases if self._epochs(progress) < 0 else 1)

    def forward(self, batch: TrainBatch, progress: Progress, phase: int = 0) -> StepOutput:
        """One phase: in the warm-up labelled images alone, then of both kinds."""
        labeled = batch.labeled
        assert labeled is not None
        if self._epochs(progress) >= 0:
            return self._learn(batch, progress)
        loss = self.labeled_loss(self.networks()[phase].logits(labeled.image), labeled.mask)
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask) if phase == 0 else {}
        return StepOutput({("labeled", "labeled_teacher", "labeled_teacher_2")[phase]: loss}, class_pixels=pixels)

    def _learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """Label weak views, mix strong ones, learn from labelled and mixed images with noisy features."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        with torch.no_grad():
            scores = self._together([teacher.logits(unlabeled.weak) for teacher in self.teachers], progress)
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        confidence, labels = scores.best()
        sure = (confidence >= self.confidence) & valid_pixels(unlabeled)
        image, target, weight, keep = unlabeled.strong[0], labels, confidence, sure
        if unlabeled.boxes is not None:
            (where,) = view_boxes(unlabeled)
            image, target, weight, keep = (pasted_next(x, where) for x in (image, target, weight, keep))

        logits_l = self.segmenter.decode(self._noisy(self.segmenter.encode(labeled.image)))
        logits_u = self.segmenter.decode(self._noisy(self.segmenter.encode(image)))
        total = (weight * logits_u.losses(target)).where(keep, 0).sum()
        risen = ramp(self._epochs(progress) / self.ramp_epochs, "cosine") if self.ramp_epochs else 1.0
        terms = {
            "labeled": self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight * risen * Term(total, keep.sum()),
        }
        kept = sure.sum() / valid_pixels(unlabeled).sum().clamp(min=1)
        pseudo = hard_labels(scores, unlabeled)
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask, pseudo=pseudo)
        return StepOutput(terms, {"kept": kept}, pixels)

    def _noisy(self, features: Features) -> Features:
        if not self.noise:
            return features
        noise = adversarial_noise(features, self.teachers, self.noise, self.noise_probe)
        maps = (x + more.to(x.dtype) for x, more in zip(features.maps, noise.maps, strict=True))
        return replace(features, maps=tuple(maps))

    def _together(self, scores: Sequence[Logits], progress: Progress) -> Logits:
        """The mean of the teachers' logits, where that of the resting one is the other's but for its best classes."""
        core, other = scores if self._core(progress) == 0 else scores[::-1]
        assist = best_classes(other.coarse, core.coarse, self.top_classes)
        return replace(core, coarse=(core.coarse + assist) / 2)

    def _epochs(self, progress: Progress) -> float:
        """Epochs since the warm-up, below 0 within it."""
        return progress.step / progress.steps_per_epoch - self.supervised_epochs

    def _core(self, progress: Progress) -> int:
        """Which teacher follows in this epoch."""
        return int(self._epochs(progress)) % 2

    def after_step(self, progress: Progress) -> None:
        """The teacher whose turn it is follows, weights and batch statistics."""
        if self._epochs(progress) >= 0:
            follow(self.teachers[self._core(progress)], self.segmenter, self.ema_decay, buffers="average")

    @property
    def threshold(self) -> float | None:
        """As configured."""
        return self.confidence

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Of unlabelled images the sure pixels count alone."""
        known = super().counts(batch)
        del known["unlabeled"]
        return known | {f"{name}_{teacher}": x for name, x in known.items() for teacher in ("teacher", "teacher_2")}


def best_classes(own: Float[Tensor, "b k h w"], other: Float[Tensor, "b k h w"], count: int) -> Tensor:
    """Each pixel's highest logits, so many of them; those of its other classes are another's.

    Args:
        own: logits.
        other: the other's.
        count: how many classes are a pixel's best.
    """
    best = own.topk(min(count, own.shape[1]), dim=1).indices
    return torch.where(torch.zeros_like(own, dtype=torch.bool).scatter(1, best, True), own, other)
