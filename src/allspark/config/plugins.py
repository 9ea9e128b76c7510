"""Plug-ins: methods, data sets and encoders of a user's own, from a file or an installed package.

A plug-in is a Python module that calls ``allspark.add_method``, ``add_data_set`` or ``add_encoder`` when it is
imported.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from allspark.errors import ConfigError, UserError

_LOADED: dict[Path, None] = {}  # in their order
GROUP = "allspark.plugins"
"""The entry point group of installed plug-ins: each names a module."""


def load_plugin(path: Path) -> None:
    """Run a plug-in file, once; what it adds is known from then on.

    Args:
        path: a Python file. It is executed: load only what you trust.

    Raises:
        ConfigError: there is no such file, or it fails; the message names its line.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"--plugin {path}: no such Python file")
    name = f"allspark_plugin_{path.resolve().as_posix().encode().hex()}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _LOADED[path.absolute()] = None
    sys.modules[name] = module  # before it runs: dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name], _LOADED[path.absolute()]
        raise ConfigError(f"--plugin {path}{_line(error, path)}: {_reason(error)}") from error


def plugin_options() -> list[str]:
    """The options of the command line that load what has been loaded, for processes that go on with it."""
    return [word for path in _LOADED for word in ("--plugin", str(path))]


@cache
def load_entry_points() -> None:
    """Import the installed plug-ins; asked for when a name is not known, since that takes time.

    Raises:
        ConfigError: one of them fails.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"the installed plug-in {point.name} ({point.value}) fails: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _line(error: BaseException, path: Path) -> str:
    """The last line of the file itself that the error came through."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f", line {error.lineno}"
    line, trace = "", error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
