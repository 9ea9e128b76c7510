"""Who may import whom: each package stands on a floor, and sees what is below; nothing runs in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import REPOSITORY

SOURCES = REPOSITORY / "src" / "allspark"
FLOORS = (
    {"errors", "files", "batch", "recipes"},
    {"config"},
    {"kernels", "runtime"},
    {"data", "models"},
    {"methods", "inference"},
    {"engine"},
    {"figures"},
    {"study"},
    {"cli"},
)
"""From the ground up. Packages of one floor may see each other."""


def modules():
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


NAMES = {name for name, _ in modules()}


def imports(path):
    """Modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "allspark":
            base = node.module.removeprefix("allspark").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in NAMES else base
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("allspark.") for a in node.names if a.name.startswith("allspark."))


GRAPH = {name: set(imports(path)) - {name} for name, path in modules() if name}


def test_every_package_has_a_floor():
    assert {name.split(".")[0] for name in GRAPH} == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(set().union(*FLOORS)))
def test_nothing_imports_upward(name):
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    upward = {
        (module, seen)
        for module, found in GRAPH.items()
        if module.split(".")[0] == name
        for seen in found
        if not seen or floor[seen.split(".")[0]] > floor[name]
    }
    # The version is a constant without imports, for whoever needs it.
    assert upward == set()


def test_no_import_runs_in_a_circle():
    """Also not by way of a function or of types alone."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_root_has_four_files():
    assert {path.name for path in SOURCES.glob("*.py")} == {"__init__.py", "batch.py", "errors.py", "files.py"}


def test_files_and_functions_stay_short():
    """A file about 300 lines, a function about 50: beyond that a room holds more than one idea."""
    long = []
    for name, path in modules():
        text = path.read_text("utf-8")
        if text.count("\n") > 330:
            long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 75:
                long.append(f"{name}.{node.name}")
    assert long == []
