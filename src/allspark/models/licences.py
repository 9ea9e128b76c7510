"""Whose the weights are that an encoder begins with, and under which licence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from allspark.config.schema import ModelConfig
from allspark.errors import CheckpointError
from allspark.models import efficientnet_lite
from allspark.models.encoder_config import HUB, MIT_PRESETS, RESNET_PRESETS, hub_file
from allspark.models.pretrained import cached_or_hub

_NVIDIA = "NVIDIA Source Code License for SegFormer, for non-commercial use only"
LICENCES: dict[str, str] = {
    efficientnet_lite.PACKAGE: "Apache-2.0",
    **{HUB[name]: _NVIDIA for name in MIT_PRESETS},
    **{HUB[name]: "Apache-2.0" for name in RESNET_PRESETS},
    **{f"facebook/dinov2-{size}": "Apache-2.0" for size in ("small", "base", "large", "giant")},
}
"""Of the weights that this project names. Read where they come from on 2026-11-28: those of the package, of resnet-50,
dinov2-small and dinov2-base. The others are as their makers are known to give them: see their model cards."""
_CARD = "README.md"


@dataclass(frozen=True)
class Weights:
    """What an encoder begins with.

    Attributes:
        source: hub name, folder, file or package.
        licence: as the source states it; empty: it states none.
    """

    source: str
    licence: str

    def __str__(self) -> str:
        """In words, for a note before training."""
        if self.licence:
            return f"weights of {self.source}, licence {self.licence}"
        where = "where the file comes from" if Path(self.source).is_file() else "its model card"
        return f"weights of {self.source}, unknown licence: see {where}"

    def to_json(self) -> dict[str, Any]:
        """For the record of a run."""
        return asdict(self)


def weights_of(config: ModelConfig) -> Weights | None:
    """The pretrained weights that a configuration asks for; None: random ones, or those of a plug-in's encoder.

    Args:
        config: ``encoder`` and ``pretrained`` are read; as the user gives it, or resolved.
    """
    if config.pretrained == "none":
        return None
    source = config.pretrained
    if source == "hub":
        packaged = efficientnet_lite.PACKAGE if config.encoder == efficientnet_lite.NAME else None
        source = packaged or HUB.get(config.encoder, config.encoder)
        if source == config.encoder and "/" not in source and not Path(source).is_dir():
            return None
    return Weights(source, LICENCES.get(source) or _of_card(source))


def _of_card(source: str) -> str:
    """What the front matter of a model card says, in a folder or on the hub; empty: nothing."""
    try:
        path = Path(source) / _CARD if Path(source).exists() else cached_or_hub(hub_file, source, filename=_CARD)
        fields = metadata_load(path) if path is not None and path.is_file() else None
    except (CheckpointError, ValueError, yaml.YAMLError):  # unreachable, or no front matter that can be read
        return ""
    known = fields or {}
    licence = known.get("license")
    if licence == "other":
        licence = known.get("license_name", known.get("license_link"))
    return " ".join(str(licence).split())[:100] if licence else ""
