"""What a training method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allspark.batch import IGNORE, Progress, StepOutput, TrainBatch, UnlabeledBatch
from allspark.config.schema import Config
from allspark.kernels.logits import Logits
from allspark.methods.losses import labeled_loss
from allspark.models.segmenter import Segmenter, build_segmenter


class Method(nn.Module, ABC):
    """One way to learn from labelled and unlabelled images. Its forward pass is one training step.

    The training loop knows no method by name: it calls ``forward``, minimises the loss, and calls ``after_step``.
    State that outlives a step is a parameter or a named buffer, so that it is in every checkpoint.

    Attributes:
        segmenter: the network that is evaluated and saved.
        labeled_loss: of logits and masks (b, H, W), as configured.
        wants_unlabeled: False for methods that learn from labels alone.
    """

    wants_unlabeled: ClassVar[bool] = True

    def __init__(self, config: Config, num_classes: int) -> None:
        super().__init__()
        self.segmenter: Segmenter = build_segmenter(config, num_classes)
        self.labeled_loss = labeled_loss(config.method)

    @abstractmethod
    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """Return the loss of one micro-batch."""

    def after_step(self, progress: Progress) -> None:
        """Follow a weight update, for example with a teacher's moving average."""

    def health(self) -> dict[str, Tensor]:
        """What to log beside each validation, (k,) each; nan where there is nothing to tell of a class."""
        return {}


@torch.no_grad()
def eval_logits(segmenter: Segmenter, image: Float[Tensor, "u 3 H W"]) -> Logits:
    """Logits of an eval-mode pass that leaves the mode as it was.

    (Not ``inference_mode``: its tensors could not be saved for backward as targets.)
    """
    training = segmenter.training
    segmenter.eval()
    logits = segmenter.logits(image)
    segmenter.train(training)
    torch.clear_autocast_cache()  # torch before 2.11 would train on the weights in half precision, without gradient
    return logits


def hard_labels(logits: Logits, batch: UnlabeledBatch) -> Int[Tensor, "u H W"]:
    """Pseudo-labels (u, H, W): the best class of every pixel, no threshold; padding is ignored."""
    labels = logits.labels()
    return labels if batch.valid is None else labels.masked_fill(~batch.valid, IGNORE)


@torch.no_grad()
def class_pixels(target: Int[Tensor, "b H W"], num_classes: int) -> Int[Tensor, " k"]:
    """Pixels of each class, (k,), without a transfer to the host; ignored ones are not counted."""
    return torch.histc(target.double(), num_classes, -0.5, num_classes - 0.5).long()
