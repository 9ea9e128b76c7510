"""Settings of `ps-mt`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Count, Probability
from allspark.config.methods.base import MethodConfig


class PSMT(MethodConfig):
    """Two teachers that follow the network in turn label strong views, whose features have adversarial noise."""

    name: Literal["ps-mt"] = Field("ps-mt", description="the training method")
    labeled_views: Literal["weak", "strong"] = Field(
        "strong", description="labelled crops: their colours changed (strong, as published), or as they are (weak)"
    )
    unlabeled_weight: float = Field(
        1.5, ge=0, description="weight of the loss of unlabelled images; published: VOC 1.5 or 0.6, Cityscapes 3"
    )
    supervised_epochs: float = Field(
        5.0, ge=0, description="warm-up: so long network and teachers train apart, on labelled images [epochs]"
    )
    ramp_epochs: float = Field(
        12.0, ge=0, description="after that the weight rises from 0 to full over so long, as half a cosine [epochs]"
    )
    confidence: Probability = Field(0.6, description="probability from which on a pseudo-label counts")
    cutmix: bool = Field(True, description="paste a box of the next image into strong views; false: leave them whole")
    top_classes: Count = Field(
        7, description="classes of a pixel whose logits the teacher that rests gives itself; others are the other's"
    )
    noise: float = Field(2.0, ge=0, description="L2 norm of the adversarial noise of an image's features; 0: none")
    noise_probe: float = Field(
        0.1,
        gt=0,
        description="L2 norm of the random noise that the adversarial one is found with; published: 1e-6, which "
        "float32's rounding swallows",
    )
    ema_decay: float = Field(0.996, ge=0, lt=1, description="how slowly the teachers follow")
