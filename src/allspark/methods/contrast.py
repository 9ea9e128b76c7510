"""Contrast of pixels: the loss, draws that are the same in all processes, and what contrasting methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch
from allspark.config import methods as config
from allspark.kernels.logits import Logits
from allspark.methods.bank import ClassBank
from allspark.methods.base import class_pixels
from allspark.methods.consistency import MeanTeacher
from allspark.methods.draws import draws
from allspark.models.projection import ProjectionHead
from allspark.models.segmenter import Segmenter
from allspark.runtime.collectives import all_gather, all_reduce, rank


def info_nce(
    anchors: Float[Tensor, "*c a d"],
    positives: Float[Tensor, "*#c _ d"],
    negatives: Float[Tensor, "*#c m d"],
    temperature: float,
    counted: Bool[Tensor, "*#c _ m"] | None = None,
    floor: float = 0.0,
) -> Float[Tensor, "*c a"]:
    """How little each anchor is like its positive beside the negatives, by the cosine (InfoNCE, van den Oord, 2018).

    Args:
        anchors: with gradient.
        positives: one for each anchor, or one for all.
        negatives: the same for all anchors of a group.
        temperature: that similarities are divided by.
        counted: which of the negatives count; None: all.
        floor: added to the sum in the logarithm, as far as it is relative to its largest part.
    """
    anchors, positives, negatives = (F.normalize(x, dim=-1) for x in (anchors, positives, negatives))
    positive = (anchors * positives).sum(-1, keepdim=True) / temperature
    others = anchors @ negatives.mT / temperature
    if counted is not None:
        others = others.masked_fill(~counted, -torch.inf)
    similar = torch.cat([positive, others], -1)
    top = similar.detach().amax(-1, keepdim=True)
    total = (similar - top).exp().sum(-1, keepdim=True) + floor
    return (top + total.log() - positive).squeeze(-1)


def uniform(shape: Sequence[int], step: int, purpose: int, device: torch.device) -> Tensor:
    """Numbers from [0, 1) in float64 that follow from the step alone: every process and every device draws the same.

    Args:
        shape: of what is returned.
        step: number of the update.
        purpose: another number for each use.
        device: where to.
    """
    return draws(torch.arange(torch.Size(shape).numel(), device=device), step, purpose).view(*shape)


def places(draws: Float[Tensor, "*c m"], count: Int[Tensor, "*c"]) -> Int[Tensor, "*c m"]:
    """Draws from [0, 1) as places from 0 to ``count - 1``; 0 where the count is."""
    return torch.minimum((draws * count[..., None]).long(), (count - 1).clamp(min=0)[..., None])


def at_grid(x: Shaped[Tensor, "b H W"], logits: Logits, fill: int) -> Shaped[Tensor, "b h w"]:
    """Labels or a mask on the decoder's grid, by the nearest pixel.

    Args:
        x: of every pixel.
        logits: whose grid.
        fill: what is where the encoder padded the images.
    """
    right, below = logits.padded[1] - x.shape[2], logits.padded[0] - x.shape[1]
    padded = F.pad(x.float(), (0, right, 0, below), value=float(fill))
    return F.interpolate(padded[:, None], logits.coarse.shape[2:], mode="nearest")[:, 0].to(x.dtype)


def gather_images(x: Shaped[Tensor, "b ..."], labeled: int) -> Shaped[Tensor, "_ ..."]:
    """What all processes have, labelled images first: the order of one process with all of their images.

    Args:
        x: of labelled, then of unlabelled images.
        labeled: how many of the former.
    """
    if x.dtype == torch.bool:
        return gather_images(x.byte(), labeled).bool()
    return torch.cat([all_gather(x[:labeled]), all_gather(x[labeled:])])


def shared_rows(x: Float[Tensor, "b h w d"], rows: Int[Tensor, "*c m"], labeled: int) -> Float[Tensor, "*c m d"]:
    """Some pixels of all processes, with gradient, the same in each.

    Args:
        x: of this process's images.
        rows: numbers of pixels in the order of :func:`gather_images`.
        labeled: how many images are labelled.
    """
    pixels = x[..., 0].numel()
    own = torch.arange(pixels, device=x.device).view(x.shape[:3]) + rank() * pixels
    place = gather_images(own, labeled).flatten()[rows]
    mine = place.div(pixels, rounding_mode="floor") == rank()
    return all_reduce(x.flatten(0, 2)[place % pixels] * mine[..., None])


class ContrastTeacher(MeanTeacher):
    """A teacher whose batch norm sees what it is shown in training mode, and a projection of the network's pixels.

    Attributes:
        projection: of what the classifier reads; it trains with the network.
        bank: what is remembered of the pixels of each class.
    """

    bank: ClassBank

    def __init__(
        self, settings: config.ContrastTeacher, build: Callable[[], Segmenter], kernels: Sequence[int], dropout: float
    ) -> None:
        super().__init__(settings, build, buffers="own")
        width = self.segmenter.hidden_channels
        self.projection = ProjectionHead(width, settings.projection_channels, kernels, dropout)
        self.contrast_weight = settings.contrast_weight

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: of labelled images alone in the warm-up, which the teacher's batch norm sees too, else of both."""
        if self.unlabeled_weight(progress) > 0:
            return self.learn(batch, progress)
        labeled = batch.labeled
        assert labeled is not None
        hidden, logits = self.segmenter.hidden_and_logits(labeled.image)
        projected = self.projection(hidden)
        self.teach(labeled.image)
        nothing = 0 * projected.sum()  # every process has gradients of all weights
        terms = {
            "labeled": self.labeled_weight * self.labeled_loss(logits, labeled.mask),
            "contrast": Term(nothing, torch.ones_like(nothing.detach())),
        }
        return StepOutput(terms, class_pixels=class_pixels(self.segmenter.num_classes, labeled=labeled.mask))

    def teach(self, image: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b c h w"], Logits]:
        """What the teacher's classifier reads in training mode, and what it makes of that."""
        with self.teacher.training_pass() as network:
            return network.hidden_and_logits(image)

    @property
    def bank_fill(self) -> Float[Tensor, " k"]:
        """How full the bank of each class is."""
        return self.bank.count / self.bank.capacity

    def health(self) -> dict[str, Tensor]:
        """How full the banks are, too."""
        return super().health() | {"bank_fill": self.bank_fill}

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The contrast is a mean over the classes of all processes, one number for each micro-batch."""
        assert batch.labeled is not None
        return super().counts(batch) | {"contrast": batch.labeled.mask.new_ones(())}
