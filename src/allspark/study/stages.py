"""Rows of a study that begin after another row, on labels that its run gives: self-training in stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from allspark.config.fields import Probability, Section
from allspark.errors import ConfigError

AFTER = "{after}"
"""Stands, in the texts of a row, for the run that it begins after."""
_LABELS = "pseudo"  # a run's folder of the labels that were made for it


class LabelStep(Section):
    """How a run of the row before labels images: the options of ``allspark label``."""

    images: str | None = Field(None, description="a list, a folder or a glob; null: all unlabelled images")
    also: str | None = Field(None, description="a list of pseudo masks that comes first in the new one")
    reliable: Probability = Field(1, description="share of the images for the list, the most reliable ones")
    by: Literal["stability", "confidence"] | None = Field(None, description="what is reliable")
    confidence: Probability | None = Field(None, description="pixels below this probability get no label")
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run labels")
    network: str | None = Field(None, description="which network of its method; null: the deployed one")
    tta: bool = Field(False, description="mean over five sizes and mirrored images")
    mode: Literal["whole", "window"] | None = Field(None, description="whole image at once or sliding window")
    precision: Literal["fp32", "bf16", "fp16", "fp64"] | None = Field(None, description="arithmetic")
    memory: bool = Field(False, description="attend to the semantic memory; false: as the run says")

    def command(self, before: Path, out: Path) -> list[str]:
        """The arguments of the program that labels.

        Args:
            before: the run that labels.
            out: the run that the labels are for.
        """
        words = ["label", str(before), "--out", str(out / _LABELS)]
        for name, value in self.model_dump(exclude_defaults=True).items():
            text = str(value).replace(AFTER, str(before))
            words += [f"--{name}"] if value is True else [f"--{name}", text]
        return words


@dataclass(frozen=True)
class Stage:
    """What a row begins with.

    Attributes:
        after: the row whose run of the same partition and seed is finished first.
        label: how that run labels; None: it does not.
    """

    after: str
    label: LabelStep | None

    def to_json(self) -> dict[str, Any]:
        """Plain data, by which a stage that was changed is noticed."""
        return {"after": self.after, "label": None if self.label is None else self.label.model_dump(mode="json")}


def list_of(out: Path) -> Path:
    """The list of the labels that were made for a run."""
    return out / _LABELS / "list.txt"


def stages(rows: Mapping[str, Mapping[str, Any]], file: Path) -> dict[str, Stage]:
    """The stages of a study by row; rows that begin by themselves have none.

    Args:
        rows: of the study file, what each changes.
        file: the study file, for messages.

    Raises:
        ConfigError: a row after one that there is not, rows after one another, or options that are none.
    """
    found: dict[str, Stage] = {}
    for name, row in rows.items():
        where = f"{file}: methods.{name}"
        after, label = row.get("after"), row.get("label")
        if after is None:
            if "label" in row or any(isinstance(value, str) and AFTER in value for value in row.values()):
                raise ConfigError(f"{where}: label and {AFTER} need a row that goes before; name it with after")
            continue
        if after not in rows:
            raise ConfigError(f"{where}: after: there is no row {after!r}; there are {', '.join(rows)}")
        found[name] = Stage(after, None if "label" not in row else _label_step({} if label is None else label, where))
    for name in found:
        _require_beginning(name, found, file)
    return found


def _label_step(options: Any, where: str) -> LabelStep:
    try:
        return LabelStep.model_validate(options)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(["label", *(str(part) for part in item["loc"])])
        known = ", ".join(LabelStep.model_fields)
        words = f"unknown, known are {known}" if item["type"] == "extra_forbidden" else item["msg"].lower()
        raise ConfigError(f"{where}: {place}: {words}") from error


def _require_beginning(name: str, found: Mapping[str, Stage], file: Path) -> None:
    """Refuse rows that wait for one another."""
    seen = [name]
    while seen[-1] in found:
        after = found[seen[-1]].after
        if after in seen:
            raise ConfigError(
                f"{file}: methods.{name}: after: these wait for one another: {' after '.join([*seen, after])}"
            )
        seen.append(after)
