"""Settings of `gta-seg`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.base import MethodConfig


class GTASeg(MethodConfig):
    """Pseudo-labels train an assistant alone, whose features reach the network as a moving average."""

    name: Literal["gta-seg"] = Field("gta-seg", description="the training method")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the assistant's loss, that of unlabelled images")
    supervised_epochs: float = Field(
        1.0, ge=0, description="supervised warm-up: so long labelled images train the network alone [epochs]"
    )
    cutmix: Probability = Field(0.5, description="probability that a box of the next image is pasted")
    drop_share: Probability = Field(
        0.2, description="share of the pixels, those that the teacher is least sure of, that trains nothing"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="how slowly the network follows its assistant, and the teacher the network"
    )
    tie_classifier: bool = Field(
        False,
        description="as the published code does it: network, assistant and teacher are one in the first epoch after "
        "the warm-up, and then network and assistant share what makes labels of features; false: each has its own, as "
        "in the paper",
    )
    assistant_lr: Literal["scheduled", "constant"] = Field(
        "scheduled",
        description="the assistant's learning rate: falling as the network's, or constant, as in the published code",
    )
