"""Settings of `supervised`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.methods.base import MethodConfig


class Supervised(MethodConfig):
    """Labelled images alone."""

    name: Literal["supervised"] = Field("supervised", description="the training method")
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="a moving average of the weights is evaluated and kept, which follows so slowly; null: the weights "
        "as they are",
    )
