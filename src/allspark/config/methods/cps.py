"""Settings of `cps`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.methods.base import MethodConfig


class CrossSupervision(MethodConfig):
    """What CPS and what builds on it have in common: two networks, each trained on what the other says."""

    cutmix: bool = Field(True, description="learn from mixes of two unlabelled images; false: from all as they are")
    cross_weight: float = Field(
        1.0, ge=0, description="weight of the cross loss; published: VOC 1 (without CutMix 1.5), Cityscapes 5 (6)"
    )


class CPS(CrossSupervision):
    """Two networks, each trained on the other's hard predictions."""

    name: Literal["cps"] = Field("cps", description="the training method")
