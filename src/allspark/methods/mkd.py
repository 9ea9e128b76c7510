"""MKD (Yuan et al., *Semi-supervised Semantic Segmentation with Mutual Knowledge Distillation*, ACM MM 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import FrenchBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import Method, class_pixels
from allspark.methods.implicit_augmentation import ClassStatistics, hardened
from allspark.methods.mixing import on_grid, pasted_next, view_boxes
from allspark.methods.teacher import Teacher
from allspark.models.ensemble import Ensemble, Network
from allspark.models.segmenter import Segmenter
from allspark.runtime.sharding import full_tensor

Seen = tuple[Tensor, Logits]
"""What a network's classifier reads of b images, (b, c, h, w), and what it makes of it."""


class MKD(Method):
    """Two networks, each with a teacher; each learns what the other and the other's teacher say, every pixel.

    Labels of the cross losses are hard, of labelled and unlabelled images and of padding too, on half of the decoder's
    grid, where all logits are made harder by implicit semantic augmentation. The first network is evaluated and kept.
    """

    settings = config.MKD

    def __init__(self, settings: config.MKD, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.second = build()
        self.teacher, self.teacher_2 = (Teacher(x, settings.ema_decay, buffers="own") for x in self.networks())
        sizes = self.segmenter.num_classes, self.segmenter.hidden_channels
        self.statistics = nn.ModuleList(ClassStatistics(*sizes) for _ in range(4))  # of networks, then of teachers
        self.teacher_weight, self.student_weight = settings.teacher_weight, settings.student_weight
        self.augmentation = settings.augmentation
        boxes = FrenchBoxes(count=3, area=(0.25, 0.5)) if settings.cutmix else None
        self.views = Views(labeled="weak", strong=1, boxes=boxes)

    def begin(self) -> None:
        """Each teacher starts as its student."""
        self.teacher.begin(self.segmenter)
        self.teacher_2.begin(self.second)

    def networks(self) -> tuple[Segmenter, ...]:
        """Both students."""
        return self.segmenter, self.second

    def candidates(self) -> dict[str, Network]:
        """Each of the two, their teachers, and the mean of what the two say."""
        known: dict[str, Network] = {"first": self.segmenter, "second": self.second}
        teachers = {"teacher": self.teacher.network, "teacher_2": self.teacher_2.network}
        return known | teachers | {"mean": Ensemble(self.networks())}

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: all four see labelled images; then the students mixes of strong views, the teachers weak ones."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        where = None if unlabeled.boxes is None else view_boxes(unlabeled)[0]
        mixed = unlabeled.strong[0] if where is None else pasted_next(unlabeled.strong[0], where)
        terms: dict[str, Term] = {}
        logits = []  # (l + u, k, h, w) of each student and each teacher
        for number, network in enumerate(self.networks()):
            of_labeled = _seen(network, labeled.image)
            terms[f"labeled{_ENDS[number]}"] = self.labeled_loss(of_labeled[1], labeled.mask)
            logits.append(self._harder(number, network, (of_labeled, _seen(network, mixed)), labeled.mask, progress))
        for number, teacher in enumerate((self.teacher, self.teacher_2), 2):
            with teacher.training_pass() as network:
                seen = _seen(network, labeled.image), _seen(network, unlabeled.weak, where)
                logits.append(self._harder(number, network, seen, labeled.mask, progress))

        labels = [one.argmax(1) for one in logits]
        for own, other in ((0, 1), (1, 0)):
            terms[f"teacher{_ENDS[own]}"] = self.teacher_weight * _crossed(logits[own], labels[2 + other])
            terms[f"student{_ENDS[own]}"] = self.student_weight * _crossed(logits[own], labels[other])
        pseudo = labels[2][len(labeled.mask) :]
        classes = self.segmenter.num_classes
        pixels = class_pixels(classes, labeled=labeled.mask) | class_pixels(classes, pseudo=pseudo)
        return StepOutput(terms, {"networks_agree": (labels[0] == labels[1]).double().mean()}, pixels)

    def _harder(
        self, number: int, network: Segmenter, parts: tuple[Seen, Seen], mask: Int[Tensor, "l H W"], progress: Progress
    ) -> Float[Tensor, "b k h w"]:
        """Logits of labelled and unlabelled images on half of the grid, after the network's statistics took them up."""
        strength = self.augmentation * (1 - math.cos(math.pi * (progress.step + 1) / progress.total_steps)) / 2
        weight = full_tensor(network.decoder.classifier.weight.detach()).flatten(1).to(mask.device)
        statistics = cast(ClassStatistics, self.statistics[number])
        out = []
        for (hidden, logits), known in zip(parts, (mask, None), strict=True):
            features, coarse = _halved(hidden.detach()), _halved(logits.coarse)
            labels = coarse.argmax(1) if known is None else _nearest(known, coarse.shape[2:])
            statistics.update(features, labels)
            out.append(hardened(coarse, labels, statistics.margins(weight, strength)))
        return torch.cat(out)

    def after_step(self, progress: Progress) -> None:
        """The teachers follow: published at the start of the next step, which counts from 1."""
        self.teacher.follow(self.segmenter, replace(progress, step=progress.step + 1))
        self.teacher_2.follow(self.second, replace(progress, step=progress.step + 1))

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Cross losses are means over images, of means over all their pixels."""
        known = super().counts(batch)
        del known["unlabeled"]
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        images = batch.labeled.mask.new_tensor(len(batch.labeled.mask) + len(batch.unlabeled.weak))
        known |= {name: images for name in ("teacher", "student")}
        return known | {f"{name}_2": count for name, count in known.items()}


_ENDS = ("", "_2")  # of the names of both networks' terms


def _seen(network: Segmenter, image: Float[Tensor, "b 3 H W"], where: Bool[Tensor, "b H W"] | None = None) -> Seen:
    """What a network says of images, mixed where boxes are given."""
    features = network.encode(image)
    hidden = network.hidden(features)
    if where is not None:
        hidden = pasted_next(hidden, on_grid(where, hidden.shape[2:], features.padded))
    return hidden, network.classify(hidden, features)


def _halved(x: Float[Tensor, "b _ h w"]) -> Tensor:
    """On half of the grid, bilinear, in float32 at least."""
    return F.interpolate(x.to(torch.promote_types(x.dtype, torch.float32)), scale_factor=0.5, mode="bilinear")


def _nearest(mask: Int[Tensor, "l H W"], grid: torch.Size) -> Int[Tensor, "l h w"]:
    """A mask on a coarser grid."""
    return F.interpolate(mask[:, None].double(), grid, mode="nearest")[:, 0].long()


def _crossed(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Term:
    """Cross-entropy of all pixels, a mean over images."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Term(losses.mean((1, 2)).sum(), labels.new_tensor(len(labels)))
