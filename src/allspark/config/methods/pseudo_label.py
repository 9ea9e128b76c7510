"""Settings of `pseudo-label`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from allspark.config.methods.base import MethodConfig


class PseudoLabel(MethodConfig):
    """The network's own hard predictions are the labels of the unlabelled images."""

    joint: ClassVar[bool] = True

    name: Literal["pseudo-label"] = Field("pseudo-label", description="the training method")
