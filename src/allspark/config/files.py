"""Configuration files: read strictly, change with ``key=value``, explain every field, save.

A file is plain YAML: each key once, no tags, no anchors, numbers as YAML 1.2 reads them (``1e-4`` is a number and
``1_8`` is a word). Whatever is wrong becomes one line that names the file, the key and the fix.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from allspark.config.schema import Config, Section
from allspark.config.yaml import flow, parse
from allspark.errors import ConfigError
from allspark.files import atomic_write
from allspark.recipes import RECIPES

MAX_BYTES = 1_000_000
"""A larger file is no configuration [bytes]."""

_WORDS = {
    r"^Value error, ": "",
    r", (unable|got) .*": "",
    r" after validation, not \d+": "",
    r"Input should be": "expected",
    r"Input is not a valid path.*": "expected a path",
    r"\w+ should have": "expected",
    r"a valid tuple": "a list like [1, 2]",
    r"a valid dictionary": "`name: value` lines",
    r"a valid integer": "a whole number",
    r"a valid number": "a number",
    r"a valid boolean": "true or false",
    r"a valid string": "text",
}
"""From pydantic's words to ours."""

_COLUMN = 38  # where the comments of `describe` begin
_WIDTH = 118  # and where they end


def load_config(path: Path) -> Config:
    """Read a configuration file; fields that it leaves out keep their default.

    Args:
        path: YAML file, at most ``MAX_BYTES`` long.

    Raises:
        ConfigError: the file is missing, is no plain YAML, or holds an unknown key or a wrong value.
    """
    tree = parse(read_text(path), str(path))
    return _validate({} if tree is None else tree, str(path))


def read_text(path: Path) -> str:
    """Read a small text file.

    Raises:
        ConfigError: it is missing, longer than ``MAX_BYTES``, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes are too many for a configuration (at most {MAX_BYTES:,})")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; `allspark config show folder > my.yaml` writes a first one"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error


def load_recipe(name: str) -> Config:
    """Read one of the recipes in ``RECIPES``.

    Raises:
        ConfigError: there is no such recipe; the nearest one is named.
    """
    return load_config(recipe_path(name))


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ConfigError: there is no such recipe; the nearest one is named.
    """
    if name in RECIPES:
        return RECIPES[name]
    hint = "use --config for a file" if Path(name).suffix in {".yaml", ".yml"} else f"did you mean {_closest(name)}?"
    raise ConfigError(f"unknown recipe {name}: {hint} (recipes: {', '.join(RECIPES)})")


def recipe_header(name: str) -> str:
    """The comment at the head of a recipe: its command, its hardware, and what is known of its score.

    Raises:
        ConfigError: there is no such recipe; the nearest one is named.
    """
    return recipe_path(name).read_text(encoding="utf-8").partition("\n\n")[0]


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with some fields changed.

    Args:
        config: what to start from.
        overrides: ``section.field=value`` each, the value as in YAML: ``data.crop=[96, 128]``, ``optim.lr=1e-3``,
            ``model.encoder_config.depths=[1, 1, 1, 1]``; an empty value is null.

    Raises:
        ConfigError: an override has no ``=``, an unknown key (the nearest is named) or a wrong value.
    """
    tree = config.model_dump()
    for item in overrides:
        key, sign, text = item.partition("=")
        key = key.strip()
        if not sign:
            raise ConfigError(f"--set {item}: expected KEY=VALUE, for example --set data.crop=321")
        if key in _fields() and _is_section(_fields()[key]):
            raise ConfigError(f"--set {item}: {key} is a section; name one of its fields, for example {_member(key)}")
        *parents, leaf = key.split(".")
        target: Any = tree
        for depth, part in enumerate(parents):
            target = target.get(part) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise ConfigError(f"--set {item}: {_unknown(key, '.'.join(parents[:depth]))}")
        target[leaf] = _override_value(key, text, f"--set {item}")
    return _validate(tree, "--set")


def _override_value(key: str, text: str, name: str) -> Any:
    """A path may hold what YAML takes for a comment or a mapping: text is text unless it is quoted or null."""
    text = text.strip()
    if key in _fields() and _is_text(_fields()[key]) and text not in {"", "~", "null"} and text[0] not in "'\"":
        return text
    return parse(text, name)


def save_config(config: Config, path: Path) -> None:
    """Write the complete configuration with its comments, atomically; ``load_config`` reads the same back."""
    with atomic_write(path, "w") as file:
        file.write(describe(config))


def describe(config: Config) -> str:
    """The complete YAML, each field commented with its meaning and unit."""
    tree = config.model_dump(mode="json")
    lines: list[str] = []
    for name, info in Config.model_fields.items():
        if not _is_section(info):
            lines += _commented(f"{name}: {flow(tree[name])}", info.description or "")
            continue
        section: Any = info.annotation
        lines += ["", *_commented(f"{name}:", (section.__doc__ or "").strip().splitlines()[0])]
        for key, field in section.model_fields.items():
            lines += _commented(f"  {key}: {flow(tree[name][key])}", field.description or "")
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Fields in which two configurations differ: dotted name, old and new value; sorted by name."""

    def walk(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key in a:
            name = prefix + key
            if name in _fields() and _is_section(_fields()[name]):
                yield from walk(a[key], b[key], f"{name}.")
            elif a[key] != b[key]:
                yield name, a[key], b[key]

    return sorted(walk(old.model_dump(mode="json"), new.model_dump(mode="json"), ""), key=lambda found: found[0])


def _commented(line: str, comment: str) -> list[str]:
    """A line with its comment in a column of its own; above the line where there is no room."""
    if len(line) + 2 > _COLUMN:
        indent = line[: len(line) - len(line.lstrip())]
        return [f"{indent}# {part}" for part in textwrap.wrap(comment, _WIDTH - len(indent) - 2)] + [line]
    first, *rest = textwrap.wrap(comment, _WIDTH - _COLUMN - 2) or [""]
    return [f"{line:{_COLUMN}}# {first}", *(f"{'':{_COLUMN}}# {part}" for part in rest)]


def _validate(tree: Any, name: str) -> Config:
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected sections like `data:` with `key: value` lines, got {_short(tree)}")
    try:
        return Config.model_validate(_numbers_as_text(tree))
    except ValidationError as error:
        found = error.errors(include_url=False)
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ConfigError(f"{name}: " + "; ".join(_explain(item) for item in found[:3]) + more) from error


def _numbers_as_text(tree: dict[str, Any]) -> dict[str, Any]:
    """Names may look like numbers (``data.split: 183``): where text belongs, a whole number is taken as written."""
    result = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    for key, info in _fields().items():
        section, _, name = key.partition(".")
        part = result.get(section)
        if isinstance(part, dict) and type(part.get(name)) is int and _is_text(info):
            part[name] = str(part[name])
    return result


def _explain(item: Any) -> str:
    """One of pydantic's findings in the words of this project."""
    location = item["loc"]
    key = ".".join(part for part in location if isinstance(part, str))
    at = "".join(f"[{part}]" for part in location if not isinstance(part, str))
    if item["type"] == "extra_forbidden":
        return _unknown(key, key.rpartition(".")[0])
    if item["type"] == "missing":
        return f"{key}: {len(at) and 'expected one value more'}, got {_short(item['input'])}"
    if item["type"] == "model_type":
        return f"{key}: expected a section with `name: value` lines, got {_short(item['input'])}"
    text = item["msg"]
    for pattern, words in _WORDS.items():
        text = re.sub(pattern, words, text)
    return f"{key}{at}: {text}, got {_short(item['input'])}"


def _short(value: Any) -> str:
    text = flow(value) if isinstance(value, (str, int, float, list, tuple, dict, Path, type(None))) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(key: str, section: str) -> str:
    """Name the nearest key: the same word in another section, a misspelt one, else all that the section knows."""
    leaf = key.rpartition(".")[2]

    def likeness(name: str) -> float:
        other = name.rpartition(".")[2]
        same_section = 0.1 * (name.rpartition(".")[0] == section)
        whole = _ratio(key, name) if key.count(".") != 1 else 0.0  # data_crop for data.crop
        return max(whole, _ratio(leaf, other)) + same_section

    best = max(_fields(), key=likeness)
    if likeness(best) >= 0.7:
        return f"unknown key {key}: did you mean {best}?"
    known = [name for name in _fields() if name.rpartition(".")[0] == section]
    return f"unknown key {key}: known are {', '.join(known)}"


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _closest(name: str) -> str:
    return max(RECIPES, key=lambda known: _ratio(name, known))


@cache
def _fields() -> MappingProxyType[str, FieldInfo]:
    """All dotted names, sections included, in the order of the file."""

    def walk(model: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, info in model.model_fields.items():
            yield f"{prefix}{name}", info
            if _is_section(info):
                section: Any = info.annotation
                yield from walk(section, f"{prefix}{name}.")

    return MappingProxyType(dict(walk(Config, "")))


def _is_section(info: FieldInfo) -> bool:
    return isinstance(info.annotation, type) and issubclass(info.annotation, Section)


def _is_text(info: FieldInfo) -> bool:
    return info.annotation in (str, str | None, Path | None)


def _member(section: str) -> str:
    return next(key for key in _fields() if key.startswith(f"{section}."))
