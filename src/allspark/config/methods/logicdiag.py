"""Settings of `logicdiag`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from allspark.config.fields import Probability
from allspark.config.methods.base import MeanTeacher
from allspark.config.yaml import parse


def _read(value: Any) -> Any:
    """A name stands for a YAML file."""
    if not isinstance(value, str):
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError(f"no file {value}; expected a YAML file of parent: [children], or that itself")
    return parse(path.read_text("utf-8"), str(path))


class LogicDiag(MeanTeacher):
    """A teacher's labels of a strong view, revised where they contradict what it says of the classes' parents."""

    name: Literal["logicdiag"] = Field("logicdiag", description="the training method")
    hierarchy: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_read)] = Field(
        {}, description="what is above the classes, by name, parent: [children], or a YAML file of it; no default"
    )
    parent_weight: float = Field(
        0.5, ge=0, description="weight of the loss of what the network says of the parents in labelled images"
    )
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted")
    confidence: Probability = Field(
        0.0, description="threshold, class-wise: lowest likelihood of a revised label, among those of all, that counts"
    )
