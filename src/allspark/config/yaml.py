"""Plain YAML: data and nothing else.

Each key once, no tags, no anchors, and numbers as YAML 1.2 reads them, not as PyYAML does: ``1e-4`` is a number,
``1_8`` and ``off`` are words. Errors are one line with the name of the file and the line in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from allspark.errors import ConfigError

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}
"""What an unquoted scalar can be beside text: YAML 1.2's core schema, in order of precedence."""


class _Loader(yaml.SafeLoader):
    """Plain data only; an error carries its line."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - typed by PyYAML

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(
                problem="tags (!), anchors (&) and aliases (*) are not supported: write the plain value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            line = key.start_mark.line + 1
            if not isinstance(name, str):
                raise yaml.MarkedYAMLError(problem=f"{name!r} is no name of a field", problem_mark=key.start_mark)
            if name in first:
                problem = f"key {name} appears twice (first in line {first[name]}): keep one of the two"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[name] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML could take for something else."""


for _tag, (_pattern, _starts) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _starts)


def flow(value: Any) -> str:
    """A value on one line of YAML, without the line's end."""
    value = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=2**31, allow_unicode=True, sort_keys=False)
    return str(text).removesuffix("\n").removesuffix("\n...")


def parse(text: str, name: str) -> Any:
    """Plain YAML to plain data.

    Args:
        text: the YAML.
        name: what to call it in messages.

    Raises:
        ConfigError: it is no YAML, or more than plain data.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise ConfigError(f"{name}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply for a configuration") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{name}: {error}") from error
