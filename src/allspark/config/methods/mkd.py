"""Settings of `mkd`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.methods.base import MethodConfig


class MKD(MethodConfig):
    """Two networks, each trained on the hard predictions of the other and of the other's teacher, made harder."""

    name: Literal["mkd"] = Field("mkd", description="the training method")
    cutmix: bool = Field(True, description="paste boxes of the next image into strong views; false: leave them whole")
    teacher_weight: float = Field(1.5, ge=0, description="weight of what the other network's teacher says")
    student_weight: float = Field(1.0, ge=0, description="weight of what the other network says")
    augmentation: float = Field(
        1.5,
        ge=0,
        description="implicit semantic augmentation: strength at the end of training, to which it rises from none as "
        "half a cosine; 0: none at all",
    )
    ema_decay: float = Field(0.6, ge=0, lt=1, description="how slowly the teachers follow")
