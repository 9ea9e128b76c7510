"""What flows through one training step.

Dimension legend, used in every shape comment of this package:
b batch, l labelled images, u unlabelled images, k classes, c channels, n tokens (= grid h x w), H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = 255
"""The mask value that no loss and no metric sees."""


@dataclass(frozen=True)
class _Movable:
    """A dataclass of tensors that moves as one; nested batches move with it."""

    def _map(self, name: str, *args: Any, **kwargs: Any) -> Self:
        changed = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if hasattr(value, name):
                changed[item.name] = getattr(value, name)(*args, **kwargs)
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on another device."""
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory (called by torch's DataLoader)."""
        return self._map("pin_memory")


@dataclass(frozen=True)
class LabeledBatch(_Movable):
    """Labelled crops."""

    image: Tensor  # (l, 3, H, W) float32, normalised
    mask: Tensor  # (l, H, W) int64, class ids and IGNORE
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnlabeledBatch(_Movable):
    """Unlabelled crops. They carry no mask of any kind."""

    image: Tensor  # (u, 3, H, W) float32, normalised
    valid: Tensor | None = None  # (u, H, W) bool, False where the crop was padded; None: no padding at all
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainBatch(_Movable):
    """One micro-batch of a training step. ``unlabeled`` is None where a method does not ask for it."""

    labeled: LabeledBatch
    unlabeled: UnlabeledBatch | None = None
    skipped: tuple[str, ...] = ()  # one line for each unreadable file that was replaced (data.on_bad_image: skip)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all images, the labelled ones first."""
        return (*self.labeled.ids, *(self.unlabeled.ids if self.unlabeled else ()))

    def with_images(self, dtype: torch.dtype) -> TrainBatch:
        """Return the batch with its images in another floating-point type."""
        labeled = replace(self.labeled, image=self.labeled.image.to(dtype))
        unlabeled = self.unlabeled and replace(self.unlabeled, image=self.unlabeled.image.to(dtype))
        return TrainBatch(labeled, unlabeled, self.skipped)


@dataclass(frozen=True)
class Guide:
    """All that the bottleneck needs beside the features, in training."""

    num_labeled: int  # the first num_labeled images of the batch are labelled
    class_scores: Tensor  # (u, k, h', w'), logits of the unlabelled images, any resolution
    read_memory: bool  # False while the memory warms up


@dataclass(frozen=True)
class Progress:
    """Where training stands. ``step`` counts weight updates from 0."""

    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> int:
        """The running epoch, from 0."""
        return self.step // self.steps_per_epoch


@dataclass(frozen=True)
class StepOutput:
    """What one training step returns: the loss to minimise, and detached numbers to log.

    ``metrics`` are scalars. ``class_pixels`` are (k,), how many pixels of each class the step's targets held:
    ``labeled`` of the masks, ``pseudo`` of the pseudo-labels.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    class_pixels: dict[str, Tensor] = field(default_factory=dict)
