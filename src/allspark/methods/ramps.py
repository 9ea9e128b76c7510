"""How the weight of unlabelled images rises: supervised warm-up, then a ramp."""

from __future__ import annotations

import math
from typing import Literal

from allspark.batch import Progress
from allspark.config.methods import Consistency

Shape = Literal["sigmoid", "linear", "cosine"]


def ramp(position: float, shape: Shape) -> float:
    """How far a ramp has risen, 0 to 1.

    Args:
        position: 0 at its start, 1 at its end; outside it stays as it is there.
        shape: ``sigmoid``, exp(-5 (1 - t)^2), which starts at exp(-5) = 0.007 (Laine and Aila, ICLR 2017); ``linear``;
            or ``cosine``, half a period.
    """
    t = min(max(position, 0.0), 1.0)
    if shape == "sigmoid":
        return math.exp(-5 * (1 - t) ** 2)
    return t if shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * t)


def unlabeled_weight(settings: Consistency, progress: Progress) -> float:
    """The weight of the losses of unlabelled images: 0 in the supervised warm-up, then it rises to the configured one.

    Args:
        settings: ``supervised_epochs``, ``ramp_epochs``, ``ramp`` and ``unlabeled_weight`` are read.
        progress: where training stands.
    """
    epochs = progress.step / progress.steps_per_epoch - settings.supervised_epochs
    if epochs < 0:
        return 0.0
    risen = ramp(epochs / settings.ramp_epochs, settings.ramp) if settings.ramp_epochs else 1.0
    return settings.unlabeled_weight * risen
