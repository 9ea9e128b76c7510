"""The dotted names of all fields, and what to say of names and values that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic.fields import FieldInfo

from allspark.config.fields import Section
from allspark.config.methods import METHOD_CONFIGS, method_config
from allspark.config.schema import Config
from allspark.config.yaml import flow
from allspark.errors import ConfigError

MOVED = {
    "method.memory": "model.bottleneck_memory",
    "method.grouping": "model.bottleneck_grouping",
    "method.warmup_epochs": "model.bottleneck_warmup_epochs",
}
"""Names of version 0.1, and where they are now. Files are read with either; ``--set`` names the new one."""

_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("path_type", "path_parsing"), "a path"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list like [1, 2]"),
    "finite_number": "a finite number",
    "string_type": "text",
    "dict_type": "`name: value` lines",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "greater than or equal to {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "less than or equal to {le:g}",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
    "missing": "one value more",
    "model_type": "a section with `name: value` lines",
}
"""What each type of pydantic's errors expected, filled in with what it tells beside."""


@cache
def keys(method: str) -> Mapping[str, FieldInfo]:
    """All dotted names, sections included, in the order of the file.

    Args:
        method: whose settings the section ``method`` holds.

    Raises:
        ConfigError: there is no such method.
    """

    def walk(model: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, info in model.model_fields.items():
            yield f"{prefix}{name}", info
            if is_section(info):
                yield from walk(section_of(name, info, method), f"{prefix}{name}.")

    return MappingProxyType(dict(walk(Config, "")))


def section_of(name: str, info: FieldInfo, method: str) -> type[Section]:
    """The class of a section; that of ``method`` depends on which it is."""
    section: Any = info.annotation
    return method_config(method) if name == "method" else section


def is_section(info: FieldInfo) -> bool:
    """Whether a field holds fields."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, Section)


def is_text(info: FieldInfo) -> bool:
    """Whether a field holds text or a path."""
    return info.annotation in (str, str | None, Path | None)


def explain(item: Any, method: str) -> str:
    """One of pydantic's findings in the words of this project."""
    location = item["loc"]
    key = ".".join(part for part in location if isinstance(part, str))
    at = "".join(f"[{part}]" for part in location if not isinstance(part, str))
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown(key, method)
    if kind == "value_error":
        error = context["error"]
        text = str(error)
        if isinstance(error, ConfigError):
            return text
    elif kind in _EXPECTED:
        text = "expected " + _EXPECTED[kind].format(**context)
    else:
        text = str(item["msg"])
    return f"{key}{at}: {text}, got {short(item['input'])}"


def short(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = flow(value) if isinstance(value, (str, int, float, list, tuple, dict, Path, type(None))) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown(key: str, method: str) -> str:
    """Name the nearest key: the same word in another section, a misspelt one, else all that the section knows."""
    if key in MOVED:
        return f"unknown key {key}: it is {MOVED[key]} now"
    section, _, leaf = key.rpartition(".")
    owners = [
        name for name, settings in METHOD_CONFIGS.items() if section == "method" and leaf in settings.model_fields
    ]
    if owners:
        others = ", ".join(owners[:-1])
        return f"{key}: a setting of method {others}{' or ' if others else ''}{owners[-1]}, not of {method}"
    known = keys(method)

    def likeness(name: str) -> float:
        other = name.rpartition(".")[2]
        same_section = 0.1 * (name.rpartition(".")[0] == section)
        whole = ratio(key, name) if key.count(".") != 1 else 0.0  # data_crop for data.crop
        return max(whole, ratio(leaf, other)) + same_section

    best = max(known, key=likeness)
    if likeness(best) >= 0.7:
        return f"unknown key {key}: did you mean {best}?"
    here = [name for name in known if name.rpartition(".")[0] == (section if section in known else "")]
    return f"unknown key {key}: known are {', '.join(here)}"


def ratio(a: str, b: str) -> float:
    """How alike two names are, 0 to 1."""
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()
