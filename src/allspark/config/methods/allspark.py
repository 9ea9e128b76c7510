"""Settings of `allspark`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from allspark.config.methods.base import MethodConfig


class AllSpark(MethodConfig):
    """Pseudo-labels, and the bottleneck that rebuilds labelled features from unlabelled ones (model.bottleneck_*)."""

    joint: ClassVar[bool] = True
    bottleneck: ClassVar[str] = "allspark"

    name: Literal["allspark"] = Field("allspark", description="the training method")
