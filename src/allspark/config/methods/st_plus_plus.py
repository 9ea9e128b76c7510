"""Settings of `st++`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.base import MethodConfig


class STPlusPlus(MethodConfig):
    """Labelled images, and others with pseudo masks that `allspark label` made (data.pseudo)."""

    name: Literal["st++"] = Field("st++", description="the training method")
    cutout: Probability = Field(
        0.5, description="probability that a box of a pseudo-labelled crop is filled with noise and ignored"
    )
