"""GTA-Seg (Jin, Wang, Lin, *Semi-Supervised Semantic Segmentation via Gentle Teaching Assistant*, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from allspark.batch import IGNORE, Progress, StepOutput, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import HalfBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.filters import lowest_share
from allspark.methods.losses import weighted_cross_entropy
from allspark.methods.mixing import pasted_next, valid_pixels, view_boxes
from allspark.methods.teacher import Teacher, move
from allspark.models.segmenter import Segmenter

_ASSISTANT, _STUDENT = 0, 1  # the phases of a step


class GTASeg(Method):
    """Pseudo-labels train an assistant alone; the student follows its features and learns from labels alone.

    Each step has two updates: of the assistant, on mixed unlabelled images whose labels a teacher gives; then, when
    the student's features have followed the assistant's, of the student. Both see labelled and mixed images in one
    pass. The teacher follows the student, has batch statistics of its own, and is what is deployed.
    """

    settings = config.GTASeg
    phases: ClassVar[int] = 2

    def __init__(self, settings: config.GTASeg, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.assistant = build()
        self.teacher = Teacher(self.segmenter, settings.ema_decay, buffers="own")
        self.unlabeled_weight = settings.unlabeled_weight
        self.supervised_epochs = settings.supervised_epochs
        self.kept_share = 1 - settings.drop_share
        self.tied = settings.tie_classifier
        self.constant_lr = settings.assistant_lr == "constant"
        self.views = Views(labeled="weak", boxes=HalfBoxes(settings.cutmix))

    def begin(self) -> None:
        """Assistant and teacher start as the student."""
        self.assistant.load_state_dict(self.segmenter.state_dict())
        self.teacher.begin(self.segmenter)

    def networks(self) -> tuple[Segmenter, ...]:
        """Student and assistant."""
        return self.segmenter, self.assistant

    def unscheduled(self) -> Iterable[nn.Parameter]:
        """Those of the assistant, if so configured."""
        return self.assistant.parameters() if self.constant_lr else ()

    @property
    def deployed(self) -> Segmenter:
        """The teacher."""
        return self.teacher.network

    def phases_of(self, progress: Progress) -> Sequence[int]:
        """The assistant rests in the warm-up."""
        return (_STUDENT,) if self._since_warmup(progress) < 0 else (_ASSISTANT, _STUDENT)

    def forward(self, batch: TrainBatch, progress: Progress, phase: int = _STUDENT) -> StepOutput:
        """One phase: the assistant's loss on mixed images, or the student's on labelled ones."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        if self._since_warmup(progress) < 0:
            with torch.no_grad():  # for their batch statistics
                self.assistant.logits(labeled.image)
            with self.teacher.training_pass() as teacher:
                teacher.logits(labeled.image)
            return self._supervised(self.segmenter.logits(labeled.image), labeled.mask)
        (where,) = view_boxes(unlabeled)
        images = torch.cat([labeled.image, pasted_next(unlabeled.weak, where)])
        parts = [len(labeled.image), len(unlabeled.weak)]
        if phase == _STUDENT:
            return self._supervised(self.segmenter.logits(images).split(parts)[0], labeled.mask)

        labels = self.teacher.logits(unlabeled.weak).labels()
        target, valid = pasted_next(labels, where), pasted_next(valid_pixels(unlabeled), where)
        logits = self.assistant.logits(images).split(parts)[1]
        with self.teacher.training_pass() as teacher:
            confidence, _ = teacher.logits(images).split(parts)[1].best()
        keep = lowest_share(-confidence, valid, self.kept_share)
        terms = {"unlabeled": self.unlabeled_weight * weighted_cross_entropy(logits, target, confidence, keep, valid)}
        kept = keep.sum() / valid.sum().clamp(min=1)
        pseudo = labels.where(valid_pixels(unlabeled), IGNORE)
        return StepOutput(terms, {"kept": kept}, class_pixels(self.segmenter.num_classes, pseudo=pseudo))

    def _supervised(self, logits: Logits, mask: Int[Tensor, "l H W"]) -> StepOutput:
        pixels = class_pixels(self.segmenter.num_classes, labeled=mask)
        return StepOutput({"labeled": self.labeled_loss(logits, mask)}, class_pixels=pixels)

    def after_phase(self, phase: int, progress: Progress) -> None:
        """When the assistant has learned, the student's features follow; the first time they are taken over."""
        steps = self._since_warmup(progress)
        if phase == _STUDENT:
            return
        if self._one_network(steps, progress):
            _take(self.segmenter, self.assistant)
            _take(self.teacher.network, self.assistant)
            return
        predictor = _predictor(self.segmenter)
        pairs = list(zip(self.segmenter.parameters(), self.assistant.parameters(), strict=True))
        move([pair for pair in pairs if id(pair[0]) not in predictor], min(1 - 1 / (steps + 1), self.teacher.decay))
        if self.tied:
            _take(self.segmenter, self.assistant, predictor)

    def after_step(self, progress: Progress) -> None:
        """When the student has learned, the teacher follows; at the end of the warm-up all three become one."""
        steps = self._since_warmup(progress)
        if self.tied and steps >= 0:
            _take(self.assistant, self.segmenter, _predictor(self.assistant))
            if self._one_network(steps, progress):
                _take(self.teacher.network, self.segmenter, _predictor(self.teacher.network))
        if steps >= 0:
            self.teacher.follow(self.segmenter, replace(progress, step=steps))
        if steps == -1 or self._one_network(steps + 1, progress):
            _take(self.assistant, self.segmenter)
            _take(self.teacher.network, self.segmenter)

    def _since_warmup(self, progress: Progress) -> int:
        """Updates since the supervised warm-up, below 0 within it."""
        return progress.step - round(self.supervised_epochs * progress.steps_per_epoch)

    def _one_network(self, steps: int, progress: Progress) -> bool:
        """Whether the published code has the weights of all three in one place: for an epoch after the warm-up."""
        return self.tied and 0 <= steps < progress.steps_per_epoch

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """How much the loss of unlabelled images is divided by follows from confidences."""
        known = super().counts(batch)
        del known["unlabeled"]
        return known


def _predictor(network: Segmenter) -> set[int]:
    """Ids of the parameters that make labels of features."""
    parts = (getattr(network.decoder, name) for name in network.decoder.predictor)
    return {id(x) for part in parts for x in part.parameters()}


@torch.no_grad()
def _take(network: Segmenter, other: Segmenter, only: set[int] | None = None) -> None:
    """Give a network the weights of another, all or some of its own by their ids."""
    for mine, new in zip(network.parameters(), other.parameters(), strict=True):
        if only is None or id(mine) in only:
            mine.copy_(new)
