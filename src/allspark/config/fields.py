"""What the fields of a configuration are made of: types, limits, and what a resumed run may change."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as False."""
    return "off" if value is False else value


def _pair(value: Any) -> Any:
    """A single number stands for a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("expected [height, width], or one number for a square")
    return value


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    """A range is written from low to high."""
    if not 0 < value[0] <= value[1]:
        raise ValueError("expected [lowest, highest], both above 0")
    return value


Positive = Annotated[int, Field(ge=1, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Size = Annotated[tuple[Positive, Positive], BeforeValidator(_pair)]
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Strength = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]  # all of it would leave nothing, or NaN
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]
OffAsText = BeforeValidator(_off)

_FREE = {"resume": "free"}


def free(default: Any, **options: Any) -> Any:
    """A field that a resumed run may change: where and how it runs, or what it does about trouble."""
    return Field(default, json_schema_extra=dict(_FREE), **options)


def is_free(info: FieldInfo) -> bool:
    """Whether a resumed run may change the field."""
    return isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("resume") == "free"
