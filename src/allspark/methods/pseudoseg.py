"""PseudoSeg (Zou et al., ICLR 2021): calibrated soft labels, half the decoder's and half of an image classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from allspark.batch import IGNORE, LabeledBatch, Progress, StepOutput, Term, TrainBatch, UnlabeledBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import SquareBoxes
from allspark.errors import ConfigError
from allspark.kernels.logits import Logits
from allspark.methods.consistency import Consistency
from allspark.methods.mixing import valid_pixels, view_boxes
from allspark.models.cam import CamHead
from allspark.models.segmenter import Segmenter
from allspark.runtime.modes import evaluating


class PseudoSeg(Consistency):
    """The soft label of a weak view is the mean of two opinions, sharpened; a strong view with a hole has to share it.

    One opinion is the decoder's. The other begins with where a classifier of whole images, which learns beside it from
    the masks, found its classes, and is spread by attention to what looks alike; so it errs in another way. Both are
    brought to one scale before they become probabilities. Padding and holes do not count.
    """

    settings = config.PseudoSeg

    def __init__(self, settings: config.PseudoSeg, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        boxes = SquareBoxes(settings.cutout)
        self.views = Views(labeled=settings.labeled_views, strong=1, boxes=boxes, colours=settings.colours)
        classes = self.segmenter.num_classes
        if settings.background is not None and settings.background >= classes:
            raise ConfigError(f"method.background: {settings.background} is no class; there are 0 to {classes - 1}")
        channels, width = self.segmenter.encoder.channels, settings.attention_width
        self.cam = CamHead(channels, classes, settings.background, width)
        self.temperature, self.calibration = settings.temperature, settings.calibration

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: two opinions of a weak view make its soft label; learn from labelled images and the strong view."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        assert unlabeled.strong is not None
        probabilities = self.soft_labels(unlabeled)
        valid = valid_pixels(unlabeled)
        labels, sure = self.filter(replace(probabilities, coarse=_log(probabilities.coarse)), valid, progress)

        terms = self.learn_labeled(labeled)
        over = _counted(unlabeled)
        (hole,) = view_boxes(unlabeled)
        logits = self.segmenter.logits(unlabeled.strong[0].masked_fill(hole[:, None], 0))  # 0 is the mean colour
        losses = -(probabilities.coarse * logits.full().log_softmax(1)).sum(1)
        total = losses.where(sure & over, 0).sum()
        terms["unlabeled"] = self.unlabeled_weight(progress) * Term(total, over.sum())
        return self.output(terms, labeled, labels, sure, valid)

    @torch.no_grad()
    def soft_labels(self, unlabeled: UnlabeledBatch) -> Logits:
        """Probabilities of every pixel of weak views: the decoder's in train mode, the classifier's in eval mode."""
        decoded = self.segmenter.logits(unlabeled.weak)
        with evaluating(self.segmenter):
            features = self.segmenter.encode(unlabeled.weak)
        _, attended = self.cam(features.maps, valid_pixels(unlabeled))
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        attended = F.interpolate(attended, decoded.coarse.shape[2:], mode="bilinear", align_corners=decoded.aligned)
        fused = calibrated(decoded.coarse, attended, self.temperature, self.calibration)
        return Logits(replace(decoded, coarse=fused).full(), decoded.size, decoded.size)

    def learn_labeled(self, labeled: LabeledBatch) -> dict[str, Term]:
        """Masks teach the decoder, the attention, and, as classes of the whole image, the classifier."""
        features = self.segmenter.encode(labeled.image)
        present, known = self.cam.present(labeled.mask)
        classes, attended = self.cam(features.maps, labeled.mask != IGNORE, present)
        losses = F.binary_cross_entropy_with_logits(classes, present.to(classes.dtype), reduction="none")
        logits = self.segmenter.decode(features)
        terms = {
            "labeled": self.labeled_loss(logits, labeled.mask),
            "labeled_attention": self.labeled_loss(replace(logits, coarse=attended), labeled.mask),
            "labeled_classes": Term(losses.where(known, 0).sum(), known.expand_as(losses).sum()),
        }
        return {name: self.labeled_weight * term for name, term in terms.items()}

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Holes do not count; all images with any label do for the classifier."""
        assert batch.labeled is not None
        assert batch.unlabeled is not None
        known = super().counts(batch) | {"unlabeled": _counted(batch.unlabeled).sum()}
        if "labeled" in known:
            known["labeled_attention"] = known["labeled"]
        present, some = self.cam.present(batch.labeled.mask)
        return known | {"labeled_classes": some.expand_as(present).sum()}


def calibrated(
    decoded: Float[Tensor, "u k h w"],
    attended: Float[Tensor, "u k h w"],
    temperature: float,
    over: Literal["image", "batch"],
) -> Float[Tensor, "u k h w"]:
    """The mean of two opinions' probabilities, whose logits are brought to one scale, sharpened.

    Args:
        decoded: logits of the one.
        attended: those of the other.
        temperature: the mean is raised to the power 1 / temperature.
        over: what has a root mean square of 1: both opinions of an image together, or of all images.
    """
    both = torch.stack([decoded, attended])
    energy = both.square().mean((0, 2, 3, 4) if over == "image" else (0, 1, 2, 3, 4), keepdim=True)
    mean = (both * (energy + 1e-8).rsqrt()).softmax(2).mean(0)
    sharp = mean ** (1 / temperature)
    return sharp / sharp.sum(1, keepdim=True)


def _counted(unlabeled: UnlabeledBatch) -> Bool[Tensor, "u H W"]:
    """No padding, and no hole."""
    return valid_pixels(unlabeled) & ~view_boxes(unlabeled)[0]


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
