"""DGCL (Wang, Zhang, Yu, Xiao, *Hunting Sparsity: Density-Guided Contrastive Learning*, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.batch import IGNORE, Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import HalfBoxes
from allspark.errors import ConfigError
from allspark.methods.bank import ClassBank
from allspark.methods.contrast import (
    ContrastTeacher,
    at_grid,
    gather_images,
    info_nce,
    shared_rows,
    uniform,
)
from allspark.methods.density import density, first_members, sure_labels
from allspark.methods.losses import reliable_cross_entropy
from allspark.methods.mixing import pasted_next, valid_pixels, view_boxes
from allspark.models.segmenter import Segmenter

_CONTRAST, _BANK = 2, 3  # what numbers are drawn for
_KNOWN = 1000  # rows of a class above which densities of new ones are computed
_FLOOR = 1e-6  # in the logarithm, as published


@dataclass(frozen=True)
class Pixels:
    """Pixels of all processes on the decoder's grid.

    Attributes:
        rows: (n, c + d), what the classifier reads of each and its projection, without gradient.
        members: (k, n), which class each is of.
        channels: c.
        labeled: labelled images of each process, which come first.
    """

    rows: Float[Tensor, "n e"]
    members: Bool[Tensor, "k n"]
    channels: int
    labeled: int


class DGCL(ContrastTeacher):
    """The teacher's sure labels are learned, and pixels in sparse regions of their class move to its dense ones.

    How dense a pixel lies is how similar the nearest features are in a bank of its class. Pixels are those of all
    processes, and what is drawn of them follows from the step, so that all hold the same bank.
    """

    settings = config.DGCL

    def __init__(self, settings: config.DGCL, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build, kernels=(1,), dropout=0.0)
        self.views = Views(labeled=settings.labeled_views, boxes=HalfBoxes(settings.cutmix))
        self.own = settings
        least = max(*settings.neighbours, settings.dense)
        if settings.bank_size < least:
            raise ConfigError(
                f"method.bank_size: {settings.bank_size} rows are fewer than are looked for in them "
                f"(method.neighbours, method.dense): set {least} or more"
            )
        classes, width = self.segmenter.num_classes, self.segmenter.hidden_channels
        sizes = [settings.bank_size] * classes
        self.bank = ClassBank(sizes, width + settings.projection_channels + 1, "method.bank_size")

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label unlabelled images and mix them, learn from these and from labelled ones, contrast pixels."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        begun = round(self.own.supervised_epochs * progress.steps_per_epoch)
        since = replace(progress, step=progress.step - begun, total_steps=max(1, progress.total_steps - begun))
        (where,) = view_boxes(unlabeled)
        valid, parts = valid_pixels(unlabeled), [len(labeled.image), len(unlabeled.weak)]
        both = torch.cat([labeled.image, unlabeled.weak])
        _, scores = self.teach(both)[1].split(parts)
        labels, sure = self.filter(scores, valid, since)
        labels_m, sure_m = (pasted_next(x, where) for x in (labels, sure & valid))

        hidden, logits = self.segmenter.hidden_and_logits(torch.cat([both, pasted_next(unlabeled.weak, where)]))
        projected = self.projection(hidden)[: len(both)]
        logits_l, _, logits_m = logits.split([*parts, parts[1]])
        drop = max(self.own.contrast_drop[0] * (1 - since.step / since.total_steps), self.own.contrast_drop[1])
        target = torch.cat([at_grid(labeled.mask, logits_l, IGNORE), sure_labels(scores, valid, drop)])
        pixels = self.gathered(hidden[: len(both)].detach(), projected.detach(), target, parts[0])
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits_l, labeled.mask),
            "unlabeled": self.unlabeled_weight(progress)
            * reliable_cross_entropy(logits_m, labels_m, sure_m, torch.ones_like(valid)),
            "contrast": self.contrast_weight * self.contrast(projected, pixels, progress.step),
        }
        self.remember(pixels, progress.step)
        return self.output(terms, labeled, labels, sure, valid, bank_fill=self.bank_fill.mean())

    def contrast(self, projected: Float[Tensor, "b d h w"], pixels: Pixels, step: int) -> Term:
        """Compare projections of the least dense pixels with those of the densest; nothing until the bank is full.

        Args:
            projected: by this process, with gradient.
            pixels: of all processes.
            step: number of the update.
        """
        own, rows, members, channels = self.own, pixels.rows, pixels.members, pixels.channels
        order = uniform((len(rows),), step, _CONTRAST, rows.device).argsort()
        features, projections = rows.split([channels, projected.shape[1]], 1)
        chosen, present = first_members(members, order, own.sampled)  # (k, s)
        stored = self.bank.rows.to(rows.dtype).unflatten(0, (len(members), own.bank_size))  # (k, m, c + d + 1)
        with torch.autocast(rows.device.type, enabled=False):
            pairs = zip(chosen, stored, strict=True)
            found = torch.stack([density(features[x], bank[:, :channels], own.neighbours) for x, bank in pairs])
            least = found.masked_fill(~present, torch.inf).topk(min(own.anchors, found.shape[1]), largest=False).indices
            most = found.masked_fill(~present, -torch.inf).topk(min(own.dense, found.shape[1])).indices
            compared = present.gather(1, least)
            anchor = shared_rows(projected.permute(0, 2, 3, 1), chosen.gather(1, least), pixels.labeled)  # (k, a, d)

            counted = present.gather(1, most)[..., None]
            batch = projections[chosen.gather(1, most)] * counted  # (k, p, d)
            best = stored[..., -1].topk(own.dense).indices
            kept = torch.stack([bank[x, channels:-1] for bank, x in zip(stored, best, strict=True)])
            positive = (batch.sum(1) + kept.sum(1)) / (counted.sum(1) + own.dense)
            others, there = first_members(members.any(0) & ~members, order, own.negatives)
            losses = info_nce(anchor, positive[:, None], projections[others], own.temperature, there[:, None], _FLOOR)
        losses = losses.where(compared, 0).sum(1) / compared.sum(1).clamp(min=1)  # (k,)
        first = torch.arange(len(members), device=losses.device) == 0
        classes = members.any(1) & (~first | own.contrast_first)
        total = losses.where(classes, 0).sum() / classes.sum().clamp(min=1)
        total = total.where((self.bank_fill == 1).all(), 0)
        return Term(total, torch.ones_like(total.detach()))

    @torch.no_grad()
    def remember(self, pixels: Pixels, step: int) -> None:
        """Put some pixels of each class into its bank, with their density among those there; arguments as above."""
        rows, members = pixels.rows, pixels.members
        order = uniform((len(rows),), step, _BANK, rows.device).argsort()
        chosen, present = first_members(members, order, self.own.bank_new)  # (k, s)
        channels, count = pixels.channels, self.bank.count
        found = []
        for index, bank in enumerate(self.bank.rows.unflatten(0, (len(members), self.own.bank_size))):
            new = rows[chosen[index]]
            with torch.autocast(rows.device.type, enabled=False):
                known = torch.arange(len(bank), device=rows.device) < count[index]
                near = density(new[:, :channels], bank[:, :channels].to(new.dtype), self.own.neighbours, known)
            near = near.where(count[index] > _KNOWN, 0)
            found.append(torch.cat([new, near[:, None]], 1))
        of_class = torch.eye(len(members), dtype=torch.bool, device=rows.device)[..., None] & present
        self.bank.push(torch.cat(found), of_class.flatten(1))

    def gathered(
        self,
        hidden: Float[Tensor, "b c h w"],
        projected: Float[Tensor, "b d h w"],
        target: Int[Tensor, "b h w"],
        labeled: int,
    ) -> Pixels:
        """The pixels of all processes.

        Args:
            hidden: what the classifier reads, without gradient.
            projected: the same.
            target: class ids and IGNORE.
            labeled: labelled images, which come first.
        """
        both = torch.cat([hidden, projected], 1).permute(0, 2, 3, 1)
        rows = gather_images(both, labeled).flatten(0, 2)
        labels = gather_images(target, labeled).flatten()
        members = labels == torch.arange(self.segmenter.num_classes, device=rows.device)[:, None]
        return Pixels(rows, members, hidden.shape[1], labeled)

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """As published, the loss of unlabelled images is multiplied by all pixels, padding too."""
        assert batch.unlabeled is not None
        valid = valid_pixels(batch.unlabeled)
        return super().counts(batch) | {"unlabeled": torch.ones_like(valid).sum()}
