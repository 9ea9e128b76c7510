"""Which pseudo-labels count: pure functions, and what a method calls."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allspark.batch import Progress
from allspark.config.methods import Consistency
from allspark.kernels.logits import Logits
from allspark.runtime.collectives import all_gather, all_reduce

_MEMORY = 0.99  # share that a class's running confidence keeps in a micro-batch: about a hundred of them are in it


def lowest_share(entropy: Float[Tensor, "u H W"], valid: Bool[Tensor, "u H W"], share: float) -> Bool[Tensor, "u H W"]:
    """Pixels whose entropy is below a percentile of the valid pixels' of all processes (U2PL, Wang et al., CVPR 2022).

    As published, a pixel right at the percentile does not count: with a share of 1 the highest entropy is left out.

    Args:
        entropy: of the class probabilities.
        valid: False where a crop was padded; these pixels do not count.
        share: of the pixels that count, 0 to 1.
    """
    return (entropy < percentile(entropy, valid, share)) & valid


def percentile(values: Float[Tensor, "u H W"], valid: Bool[Tensor, "u H W"], share: float) -> Float[Tensor, ""]:
    """The value below which a share of the valid pixels of all processes is, linear between two of them.

    Args:
        values: of each pixel, finite.
        valid: which pixels count; infinity where none does.
        share: 0 to 1.
    """
    ranked = all_gather(values.masked_fill(~valid, torch.inf).flatten()).sort().values
    last = ((ranked < torch.inf).sum() - 1).clamp(min=0)
    place = share * last.double()
    low = place.floor().long()
    below, above = ranked.index_select(0, torch.stack([low, torch.minimum(low + 1, last)]))
    return torch.lerp(below, above, (place - low).to(below.dtype))


def class_thresholds(confidence: float, running: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """A threshold for each class: lower for classes that the network is less sure of.

    After FlexMatch (Zhang et al., NeurIPS 2021), with each class's mean confidence in place of its count.

    Args:
        confidence: of the class that it is surest of, 0 to 1.
        running: mean confidence of the pixels of each class, above 0.
    """
    return confidence * running / running.max()


def follow_confidence(
    running: Float[Tensor, " k"],
    confidence: Float[Tensor, "u H W"],
    labels: Int[Tensor, "u H W"],
    valid: Bool[Tensor, "u H W"],
    memory: float = _MEMORY,
) -> Float[Tensor, " k"]:
    """The mean confidence of each class after one more micro-batch, of all processes; as it was for absent classes.

    Args:
        running: before.
        confidence: probability of each pixel's best class.
        labels: these classes.
        valid: False where a crop was padded; these pixels do not count.
        memory: share that stays of what was, 0 to 1.
    """
    mean, count = class_means(confidence, labels, valid, len(running))
    mean = mean.to(running.dtype)
    return torch.where(count > 0, memory * running + (1 - memory) * mean, running)


def class_means(
    values: Float[Tensor, "b H W"], labels: Int[Tensor, "b H W"], valid: Bool[Tensor, "b H W"], num_classes: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The mean of the pixels of each class, of all processes, and how many there are; 0 for absent classes.

    Args:
        values: of each pixel.
        labels: class ids; whatever it is where a pixel does not count.
        valid: which pixels count.
        num_classes: k.

    Returns:
        Two of (k,) in float64.
    """
    seen = valid.flatten().double()
    place = labels.where(valid, 0).flatten()
    sums = seen.new_zeros(2, num_classes)
    sums[0].index_add_(0, place, values.flatten().to(seen.dtype) * seen)
    sums[1].index_add_(0, place, seen)
    total, count = all_reduce(sums)
    return total / count.clamp(min=1), count


class PixelFilter(nn.Module):
    """Labels images by their scores, and says which of the labels count. Its state is in every checkpoint.

    Args:
        settings: ``filter``, ``confidence`` and ``drop_share`` are read.
        num_classes: k.
    """

    running: Tensor

    def __init__(self, settings: Consistency, num_classes: int) -> None:
        super().__init__()
        self.kind = settings.filter
        self.confidence = settings.confidence
        self.drop_share = settings.drop_share
        if self.kind == "class-wise":  # sure of all at first: the thresholds start as one, and fall
            self.register_buffer("running", torch.ones(num_classes, dtype=torch.float64))

    @property
    def thresholds(self) -> Tensor | None:
        """(k,), where each class has its own."""
        return class_thresholds(self.confidence, self.running) if self.kind == "class-wise" else None

    @torch.no_grad()
    def forward(
        self, scores: Logits, valid: Bool[Tensor, "u H W"], progress: Progress
    ) -> tuple[Int[Tensor, "u H W"], Bool[Tensor, "u H W"]]:
        """Return the best class of every pixel, and whether it counts.

        Args:
            scores: of u unlabelled images.
            valid: False where a crop was padded.
            progress: where training stands.
        """
        confidence, labels = scores.best()
        if self.kind == "percentile":
            first, last = self.drop_share
            drop = first + (last - first) * progress.step / progress.total_steps
            return labels, lowest_share(scores.entropy(), valid, 1 - drop)
        if self.kind == "class-wise":
            self.running.copy_(follow_confidence(self.running, confidence, labels, valid))
            thresholds = class_thresholds(self.confidence, self.running)
            return labels, confidence >= thresholds[labels]
        return labels, confidence >= self.confidence


class AdaptiveThreshold(nn.Module):
    """One threshold for all classes: it follows the highest confidences of those that are seen, their mean (CorrMatch).

    It changes after an update, by all its images, of all processes.

    Args:
        first: in the beginning.
        memory: share that it keeps of itself in an update.
        num_classes: k.
    """

    value: Tensor
    highest: Tensor

    def __init__(self, first: float, memory: float, num_classes: int) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("value", torch.tensor(first, dtype=torch.float64))
        self.register_buffer("highest", torch.zeros(num_classes, dtype=torch.float64))  # of this update

    @torch.no_grad()
    def see(
        self, confidence: Float[Tensor, "u H W"], labels: Int[Tensor, "u H W"], valid: Bool[Tensor, "u H W"]
    ) -> None:
        """Take note of labels and their probabilities, where they are valid."""
        counted = confidence.to(self.highest.dtype).where(valid, 0)
        self.highest.scatter_reduce_(0, labels.flatten(), counted.flatten(), "amax")

    @torch.no_grad()
    def follow(self) -> None:
        """Follow what was noted since; all processes together."""
        highest = all_gather(self.highest[None]).amax(0)
        seen = (highest > 0).sum()
        now = self.memory * self.value + (1 - self.memory) * highest.sum() / seen.clamp(min=1)
        self.value.copy_(now.where(seen > 0, self.value))
        self.highest.zero_()
