"""What flows through one training step.

Dimension legend, used in every shape comment of this package:
b batch, l labelled images, u unlabelled images, k classes, c channels, n tokens (= grid h x w), H W pixels,
s strong views, r boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import Self

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

IGNORE = 255
"""The mask value that no loss and no metric sees."""


@dataclass(frozen=True)
class Normalisation:
    """How RGB becomes what an encoder takes: ``(rgb / 255 - mean) / std``, as its weights were trained.

    Attributes:
        mean: of red, green and blue, from 0 to 1.
        std: the same.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


IMAGENET = Normalisation()
"""Of ImageNet: what most encoders were trained with."""


class Boxes(Protocol):
    """How CutMix boxes are drawn; see :mod:`allspark.data.boxes` for the published ways."""

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (r, 4) boxes of one view: top, left, bottom, right [pixels]; an empty box has no pixel."""


@dataclass(frozen=True)
class Views:
    """What a method asks the loader for.

    Attributes:
        labeled: crops of labelled images with their colours changed (``strong``) or not (``weak``); None: no labelled
            images at all (pretraining).
        unlabeled: crops of unlabelled images, their colours unchanged.
        strong: so many more views of each of these crops, pixel by pixel the same with other colours.
        colours: how those of strong views are changed: by ``jitter``, greyscale and blur, or out of a ``random-list``.
        boxes: how CutMix boxes are drawn, one draw for each strong view (one at least); None: none are.
        partner: a second, independent draw of unlabelled images with the same views, to be mixed with the first.
        chance: a random number for each unlabelled crop, for what a method leaves to chance; unlike torch's numbers it
            is the same with any number of processes.
        pseudo: crops of images with pseudo masks (data.pseudo), their colours changed, as many as unlabelled ones.
        cutout: how boxes of these crops are drawn that are filled with noise and ignored; None: none are.
        compared: unlabelled images of a micro-batch are compared with each other, so there must be two.
    """

    labeled: Literal["strong", "weak"] | None = "strong"
    unlabeled: bool = True
    strong: int = 0
    boxes: Boxes | None = None
    partner: bool = False
    colours: Literal["jitter", "random-list"] = "jitter"
    chance: bool = False
    pseudo: bool = False
    cutout: Boxes | None = None
    compared: bool = False

    def __post_init__(self) -> None:
        if self.cutout is not None and not self.pseudo:
            raise ValueError(f"{self}: cutout is for crops with pseudo masks, which are not asked for")
        if not self.unlabeled and (self.labeled is None or self.strong or self.boxes or self.partner or self.chance):
            raise ValueError(f"{self}: without unlabelled images there must be labelled ones, and no other view")
        if self.strong < 0:
            raise ValueError(f"{self}: strong counts views, expected 0 or more")


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

    def with_images(self, dtype: torch.dtype) -> LabeledBatch:
        """Return the batch with its images in another floating-point type."""
        return replace(self, image=self.image.to(dtype))


@dataclass(frozen=True)
class UnlabeledBatch(_Movable):
    """Unlabelled crops. They carry no mask of any kind."""

    weak: Tensor  # (u, 3, H, W) float32, normalised
    valid: Tensor | None = None  # (u, H, W) bool, False where the crop was padded; None: no padding at all
    ids: tuple[str, ...] = ()
    strong: Tensor | None = None  # (s, u, 3, H, W), the same crops in other colours; None: not asked for
    boxes: Tensor | None = None  # (s or 1, u, r, 4) int64, see Boxes; None: not asked for
    chance: Tensor | None = None  # (u,), from [0, 1); None: not asked for

    def with_images(self, dtype: torch.dtype) -> UnlabeledBatch:
        """Return the batch with its images in another floating-point type."""
        return replace(self, weak=self.weak.to(dtype), strong=None if self.strong is None else self.strong.to(dtype))


@dataclass(frozen=True)
class TrainBatch(_Movable):
    """One micro-batch of a training step. A part is None where the method does not ask for it."""

    labeled: LabeledBatch | None
    unlabeled: UnlabeledBatch | None = None
    skipped: tuple[str, ...] = ()  # one line for each unreadable file that was replaced (data.on_bad_image: skip)
    partner: UnlabeledBatch | None = None
    pseudo: LabeledBatch | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all images, the labelled ones first."""
        parts = (self.labeled, self.unlabeled, self.partner, self.pseudo)
        return tuple(name for part in parts if part is not None for name in part.ids)

    def with_images(self, dtype: torch.dtype) -> TrainBatch:
        """Return the batch with its images in another floating-point type."""
        return replace(
            self,
            labeled=self.labeled and self.labeled.with_images(dtype),
            unlabeled=self.unlabeled and self.unlabeled.with_images(dtype),
            partner=self.partner and self.partner.with_images(dtype),
            pseudo=self.pseudo and self.pseudo.with_images(dtype),
        )


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
class Term:
    """One part of a loss, as numerator and denominator: ``weight * total / count``.

    Kept apart, so that the parts of an update (micro-batches, processes) add up to the loss of the whole update: the
    sum of all totals by the sum of all counts.

    Attributes:
        total: scalar with gradient, summed over the pixels of this micro-batch.
        count: scalar without gradient: how many pixels (or how much weight) the total is a sum over.
        weight: of the mean in the loss.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0

    def __rmul__(self, factor: float) -> Term:
        """The same with another weight: ``0.5 * term``."""
        return replace(self, weight=factor * self.weight)

    def __add__(self, other: Term) -> Term:
        """The mean over the pixels of both; they must have one weight."""
        if self.weight != other.weight:
            raise ValueError(f"terms of weight {self.weight} and {other.weight} cannot be one: return both")
        return Term(self.total + other.total, self.count + other.count, self.weight)

    def mean(self, count: Tensor | None = None) -> Tensor:
        """``total / count``, scalar with gradient; 0 where nothing counts. ``count`` takes the place of the own one."""
        count = self.count if count is None else count
        return self.total / count.where(count > 0, 1).to(self.total.dtype)


@dataclass(frozen=True)
class StepOutput:
    """What one training step returns.

    Attributes:
        terms: the loss is their weighted sum; the log shows each as ``loss_NAME``.
        metrics: detached scalars to log beside them; which there are is the method's own choice.
        class_pixels: (k,), how many pixels of each class the step's targets held: ``labeled`` of the masks, ``pseudo``
            of the pseudo-labels.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    class_pixels: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The loss of this micro-batch by itself, scalar with gradient."""
        return weighted_sum({name: term.mean() for name, term in self.terms.items()}, self.terms)


def weighted_sum(means: Mapping[str, Tensor], terms: Mapping[str, Term]) -> Tensor:
    """The loss, from the mean of each of its terms."""
    first, *rest = (term.weight * means[name] for name, term in terms.items())
    for more in rest:
        first = first + more
    return first
