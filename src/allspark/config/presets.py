"""The published settings of a method on a data set, between a recipe and what the user asks for. Torch-free.

A recipe holds the settings of AllSpark on its data set. A preset, ``recipes/presets/METHOD.yaml``, names for another
method what its authors had instead: its own settings, optimiser, length, crop, views and network, which belong
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allspark.config.files import apply_overrides, differences, read_text
from allspark.config.schema import Config
from allspark.config.yaml import flow, parse
from allspark.errors import ConfigError
from allspark.recipes import PRESETS

DATA_SETS = ("voc", "cityscapes", "coco")
"""The recipes, each of the data set of its name, that methods can have presets for."""
NO_PRESET = "none"
_NETWORK = "model."


@dataclass(frozen=True)
class Applied:
    """A configuration with a preset, below what the user asks for.

    Attributes:
        config: of the recipe, with the preset's settings.
        lines: what is said of it before training; none where there is no preset.
    """

    config: Config
    lines: tuple[str, ...] = ()


def read_preset(method: str, data_set: str) -> dict[str, Any] | None:
    """Dotted fields and their values; None where the method has no published settings for the data set."""
    path = PRESETS / f"{method}.yaml"
    if not path.is_file():
        return None
    section = parse(read_text(path), str(path)).get(data_set)
    return None if section is None else dict(section)


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """``key=value`` for :func:`allspark.config.files.apply_overrides`, of dotted fields and their values."""
    return [f"{name}={value if isinstance(value, str) else flow(value)}" for name, value in changes.items()]


def without_network(preset: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """A preset for the network that the user asks for: where the encoder is named, its own network is left out.

    Args:
        preset: dotted fields and their values.
        asked: dotted names of what the user changes.
    """
    if "model.encoder" not in asked:
        return dict(preset)
    return {name: value for name, value in preset.items() if not name.startswith(_NETWORK)}


def with_preset(config: Config, recipe: str | None, wanted: str | None, changes: Sequence[str]) -> Applied:
    """Lay the preset of the method over a configuration.

    Args:
        config: of a recipe or a file.
        recipe: its name; None: it is a file's, to which a preset has to be asked for.
        wanted: ``--preset``: for which data set, or ``none``; None: for the recipe's.
        changes: what the user asks for, ``key=value`` each. They are not applied here, but decide which method, data
            set and network it is; what they name is theirs.

    Raises:
        ConfigError: a preset is asked for that there is not, or for another data set; or the changes are wrong.
    """
    if wanted == NO_PRESET or (wanted is None and recipe not in DATA_SETS):
        return Applied(config)
    asked = [item.partition("=")[0].strip() for item in changes]
    deciding = [item for item, name in zip(changes, asked, strict=True) if name in {"method.name", "data.source"}]
    base = apply_overrides(config, deciding)
    method, source = base.method.name, base.data.source
    data_set = wanted or str(recipe)
    found = read_preset(method, data_set) if data_set in DATA_SETS else None
    if wanted is not None:
        _require(found, method, data_set, source)
    if found is None or source != data_set:
        return Applied(config)
    used = without_network(found, asked)
    result = apply_overrides(base, as_overrides(used))
    lines = [
        f"  {name}: {flow(old)} -> {flow(new)}" for name, old, new in differences(base, result) if name not in asked
    ]
    head = f"note: published settings of {method} for {data_set} in place of the recipe's (--preset none keeps those)"
    if used != found:
        head += "; its network is left out, since model.encoder is given"
    return Applied(result, (head, *lines))


def _require(found: Mapping[str, Any] | None, method: str, data_set: str, source: str) -> None:
    if data_set not in DATA_SETS:
        raise ConfigError(f"--preset {data_set}: expected {', '.join(DATA_SETS)} or {NO_PRESET}")
    if source != data_set:
        raise ConfigError(
            f"--preset {data_set}: these settings were published for {data_set}, and data.source is {source}; leave "
            f"--preset out, or take --recipe {data_set}"
        )
    if found is None:
        there = [name for name in DATA_SETS if read_preset(method, name) is not None]
        raise ConfigError(
            f"--preset {data_set}: method {method} has no published settings for it here"
            + (f", only for {', '.join(there)}" if there else "")
            + "; leave --preset out"
        )
