"""Is the training well? What each validation looks at beside the score, and when to warn.

Runs of self-training peak and then collapse: the network forgets a class, so its pseudo-labels lack it, so it forgets
it for good. The signs come before the score falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from allspark.batch import IGNORE
from allspark.data.decode import read_sample
from allspark.data.source import Sample, Source
from allspark.errors import DataError
from allspark.inference.metrics import ConfusionMatrix
from allspark.inference.predictor import Predictor

_LOST = 0.1  # a class is lost if its share of the pseudo-labels is below this part of its share of the labels
_LOST_SHARE = 0.05  # of the labelled pixels that lost classes hold together: from here on it is a collapse
_LOST_CLASSES = 0.5  # of the classes: likewise
_FALLEN = 0.8  # of the best validation mIoU
_SETTLED = 0.2  # of the training: before, a network from scratch does not know all classes yet
_SIDE = 128  # pixels of the longer side, at which pseudo-labels are remembered from one validation to the next


@dataclass(frozen=True)
class Probe:
    """What the predictions on the watched images are at one validation. Shares and scores are 0 to 1.

    Attributes:
        labels: predictions on the watched unlabelled images, at reduced size, as one flat uint8 vector.
        agreement: share of them that are as at the validation before; None at the first one.
        pseudo_accuracy: share of right pixels on watched unlabelled images that happen to have a mask; None: none has.
        kept: share of the pixels of these images whose prediction would count as a pseudo-label; None: not known.
        kept_precision: share of right pixels among those; None: not known, or nothing would count.
        miou: ``labeled`` and, where masks exist, ``unlabeled``: mIoU on the watched training images.
    """

    labels: NDArray[np.uint8]
    agreement: float | None
    pseudo_accuracy: float | None
    kept: float | None
    kept_precision: float | None
    miou: dict[str, float]

    def to_json(self) -> dict[str, float]:
        """Return the scalars that are known, under the names they have in the log."""
        known = {
            "agreement": self.agreement,
            "pseudo_accuracy": self.pseudo_accuracy,
            "pseudo_kept": self.kept,
            "pseudo_precision": self.kept_precision,
        }
        scores = {f"miou_{role}": value for role, value in self.miou.items() if not np.isnan(value)}
        return {**{name: value for name, value in known.items() if value is not None}, **scores}


def watched(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` samples, spread evenly, always the same."""
    return [samples[int(place)] for place in np.linspace(0, len(samples) - 1, min(count, len(samples))).round()]


def probe(
    predictor: Predictor,
    source: Source,
    count: int,
    before: NDArray[np.uint8] | None,
    *,
    max_pixels: int,
    threshold: float | None = None,
) -> Probe:
    """Predict the watched training images, and compare with their masks and with those of the validation before.

    Args:
        predictor: the network as it is now.
        source: the data set. Masks of unlabelled images, where they exist, are used for nothing but this.
        count: how many labelled and how many unlabelled images are watched.
        before: ``labels`` of the validation before; None: there was none.
        max_pixels: largest image that is decoded [pixels].
        threshold: confidence from which on a pseudo-label counts, 0 to 1; None: it follows another rule.
    """
    kept, right, seen = 0, 0, 0  # pixels of unlabelled images with masks
    miou, accuracy, labels = {}, None, [np.zeros(0, np.uint8)]
    for role, samples in (("labeled", source.labeled), ("unlabeled", source.unlabeled)):
        confusion = ConfusionMatrix(source.num_classes, predictor.device)
        for sample in watched(samples, count):
            has_mask = sample.mask is not None and sample.mask.is_file()
            try:
                image, mask = read_sample(sample, source, want_mask=has_mask, max_pixels=max_pixels)
            except DataError:
                continue  # the stream of training batches says what is wrong with it, and stops or goes on
            prediction = predictor.predict(image)
            found = torch.from_numpy(prediction.mask)[None]
            if mask is not None:
                confusion.update(found, torch.from_numpy(mask)[None])
            if role == "unlabeled" and mask is not None and threshold is not None:
                counted = mask != IGNORE
                sure = counted & (prediction.confidence >= threshold)
                seen, kept = seen + int(counted.sum()), kept + int(sure.sum())
                right += int((sure & (prediction.mask == mask)).sum())
            if role == "unlabeled":
                step = max(1, -(-max(found.shape) // _SIDE))
                labels.append(found[0, ::step, ::step].to(torch.uint8).cpu().numpy().ravel())
        scores = confusion.scores()
        if not np.isnan(scores.miou):
            miou[role] = scores.miou
            accuracy = scores.pixel_accuracy if role == "unlabeled" else None
    flat = np.concatenate(labels)
    comparable = before is not None and len(before) == len(flat) > 0
    agreement = float(np.mean(before == flat)) if comparable else None
    return Probe(flat, agreement, accuracy, kept / seen if seen else None, right / kept if kept else None, miou)


def shares(pixels: Sequence[int]) -> NDArray[np.float64]:
    """(k,), what part of all pixels each class has; nan where there are no pixels."""
    counts = np.asarray(pixels, np.float64)
    return counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan)


def lost_classes(pixels: Mapping[str, Sequence[int]]) -> list[int]:
    """Classes that the pseudo-labels have all but lost, as far as they make a collapse; else none.

    Args:
        pixels: ``labeled`` and ``pseudo``, pixels of each class, (k,).
    """
    if not {"labeled", "pseudo"} <= pixels.keys() or not sum(pixels["pseudo"]) or not sum(pixels["labeled"]):
        return []
    labeled, pseudo = shares(pixels["labeled"]), shares(pixels["pseudo"])
    lost = np.flatnonzero((labeled > 0) & (pseudo < _LOST * labeled))
    severe = labeled[lost].sum() >= _LOST_SHARE or len(lost) >= _LOST_CLASSES * np.count_nonzero(labeled)
    return lost.tolist() if severe else []


def warning(
    pixels: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    progress: float,
    scores: tuple[float, float] | None,
    warned: Sequence[str],
    advice: str = "",
) -> tuple[str | None, list[str]]:
    """Say in words what is going wrong, once for each lost class and once for each fall of the score.

    Args:
        pixels: as in :func:`lost_classes`, since the last validation.
        classes: names.
        progress: share of the training that is done, 0 to 1.
        scores: mIoU now and the best so far; None: no validation.
        warned: what has been warned of already.
        advice: what helps with this method, beside what helps always.

    Returns:
        The warning, None if there is nothing new; and what has been warned of by now.
    """
    lost = [classes[k] for k in lost_classes(pixels)] if progress >= _SETTLED else []
    fallen = scores is not None and progress >= _SETTLED and scores[0] < _FALLEN * scores[1]
    parts = []
    if set(lost) - set(warned):
        labeled, pseudo = (
            100 * sum(share for share, name in zip(shares(pixels[key]), classes, strict=True) if name in lost)
            for key in ("labeled", "pseudo")
        )
        names = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
        parts.append(
            f"the pseudo-labels are collapsing: {names}: {labeled:.1f} % of the labelled pixels, but only "
            f"{pseudo:.1f} % of the pseudo-labels"
        )
    if fallen and scores is not None and _FALL not in warned:
        parts.append(f"validation mIoU fell from {100 * scores[1]:.1f} % (kept as best) to {100 * scores[0]:.1f} %")
    now = [*lost, *([_FALL] if fallen else [])]
    if not parts:
        return None, now
    remedies = ", ".join(["a lower optim.lr", *([advice] if advice else []), "pretrained weights or more labels"])
    return f"{'; '.join(parts)}; {remedies} help", now


_FALL = "(validation mIoU)"


def class_table(values: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """Numbers of classes by name, for the log; what is not known is left out."""
    return {name: round(float(value), 6) for name, value in zip(classes, values, strict=True) if not np.isnan(value)}
