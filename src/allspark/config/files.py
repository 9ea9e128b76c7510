"""Configuration files: read strictly, change with ``key=value``, explain every field, save.

A file is plain YAML: each key once, no tags, no anchors, numbers as YAML 1.2 reads them (``1e-4`` is a number and
``1_8`` is a word). Whatever is wrong becomes one line that names the file, the key and the fix.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from allspark.config.keys import MOVED, explain, is_section, is_text, keys, ratio, section_of, short, unknown
from allspark.config.methods import method_config
from allspark.config.schema import Config
from allspark.config.yaml import flow, parse
from allspark.errors import ConfigError
from allspark.files import atomic_write
from allspark.recipes import RECIPES

MAX_BYTES = 1_000_000
"""A larger file is no configuration [bytes]."""

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
    return read_config({} if tree is None else tree, str(path))


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
    items = [_key_and_text(item) for item in overrides]
    # The method first: what its settings are follows from its name.
    for key, text, item in sorted(items, key=lambda found: found[0] != "method.name"):
        known = keys(tree["method"]["name"])
        if key in known and is_section(known[key]):
            member = next(name for name in known if name.startswith(f"{key}."))
            raise ConfigError(f"--set {item}: {key} is a section; name one of its fields, for example {member}")
        *parents, leaf = key.split(".")
        target: Any = tree
        for part in parents:
            target = target.get(part) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise ConfigError(f"--set {item}: {unknown(key, tree['method']['name'])}")
        value = _override_value(key, text, tree["method"]["name"], f"--set {item}")
        if key == "method.name":
            tree["method"] = _other_method(tree["method"], str(value))
        else:
            target[leaf] = value
    return _validate(tree, "--set")


def _key_and_text(item: str) -> tuple[str, str, str]:
    key, sign, text = item.partition("=")
    if not sign:
        raise ConfigError(f"--set {item}: expected KEY=VALUE, for example --set data.crop=321")
    return key.strip(), text.strip(), item


def _override_value(key: str, text: str, method: str, name: str) -> Any:
    """A path may hold what YAML takes for a comment or a mapping: text is text unless it is quoted or null."""
    known = keys(method)
    if key in known and is_text(known[key]) and text not in {"", "~", "null"} and text[0] not in "'\"":
        return text
    return parse(text, name)


def _other_method(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of another method: its defaults, but for what was changed of what both have from one class."""
    try:
        other = method_config(name)
    except ConfigError as error:
        raise ConfigError(f"--set {error}") from error
    own = method_config(settings["name"])
    if own is other:
        return settings
    common: type[Any] = next(base for base in own.__mro__ if issubclass(other, base))
    changed = {key for key, value in settings.items() if value != own.model_fields[key].default}
    return {key: settings[key] for key in common.model_fields if key in changed} | {"name": name}


def save_config(config: Config, path: Path) -> None:
    """Write the complete configuration with its comments, atomically; ``load_config`` reads the same back."""
    with atomic_write(path, "w") as file:
        file.write(describe(config))


def describe(config: Config) -> str:
    """The complete YAML, each field commented with its meaning and unit."""
    tree = config.model_dump(mode="json")
    lines: list[str] = []
    for name, info in Config.model_fields.items():
        if not is_section(info):
            lines += _commented(f"{name}: {flow(tree[name])}", info.description or "")
            continue
        section = section_of(name, info, config.method.name)
        lines += ["", *_commented(f"{name}:", (section.__doc__ or "").strip().splitlines()[0])]
        for key, field in section.model_fields.items():
            lines += _commented(f"  {key}: {flow(tree[name][key])}", field.description or "")
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Fields in which two configurations differ: dotted name, old and new value; sorted by name.

    Settings that only one of two methods has are left out: the methods' names differ then.
    """

    def walk(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key in (key for key in a if key in b):
            name = prefix + key
            if not prefix and is_section(Config.model_fields[key]):
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


def read_config(tree: Any, name: str) -> Config:
    """A configuration from plain data, as a file or a checkpoint holds it, of this version or an earlier one.

    Args:
        tree: nested dictionaries.
        name: what to call it in messages.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    return _validate(_from_earlier(tree), name)


def _from_earlier(tree: Any) -> Any:
    """Put what version 0.1 had elsewhere to its place."""
    if not isinstance(tree, dict) or not isinstance(tree.get("method"), dict):
        return tree
    moved = {f"method.{key}": value for key, value in tree["method"].items() if f"method.{key}" in MOVED}
    if not moved or not isinstance(tree.get("model", {}), dict):
        return tree
    method = {key: value for key, value in tree["method"].items() if f"method.{key}" not in MOVED}
    model = {MOVED[key].partition(".")[2]: value for key, value in moved.items()} | tree.get("model", {})
    return {**tree, "method": method, "model": model}


def _validate(tree: Any, name: str) -> Config:
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected sections like `data:` with `key: value` lines, got {short(tree)}")
    method = _method_name(tree)
    try:
        return Config.model_validate(_numbers_as_text(tree, method))
    except ValidationError as error:
        found = error.errors(include_url=False)
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ConfigError(f"{name}: " + "; ".join(explain(item, method) for item in found[:3]) + more) from error


def _method_name(tree: dict[str, Any]) -> str:
    """Whose settings the tree holds, as far as can be told; the default method's otherwise."""
    section = tree.get("method")
    named = str(section.get("name")) if isinstance(section, dict) else ""
    try:
        method_config(named)
    except ConfigError:
        return Config().method.name
    return named


def _numbers_as_text(tree: dict[str, Any], method: str) -> dict[str, Any]:
    """Names may look like numbers (``data.split: 183``): where text belongs, a whole number is taken as written."""
    result = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    for key, info in keys(method).items():
        section, _, name = key.partition(".")
        part = result.get(section)
        if isinstance(part, dict) and type(part.get(name)) is int and is_text(info):
            part[name] = str(part[name])
    return result


def _closest(name: str) -> str:
    return max(RECIPES, key=lambda known: ratio(name, known))
