"""The program: run one command; whatever a user can cause ends in one line and exit status 2."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from allspark.cli.commands import app
from allspark.errors import UserError
from allspark.runtime.host_memory import keep_freed_memory, restart_without_caches

_CTRL_C = 130
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer's own class or click's, depending on the version


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for wrong input, 130 or 143 when interrupted."""
    if argv is not None:
        return _run(argv)
    if sys.argv[1:2] == ["train"]:
        restart_without_caches()
    keep_freed_memory()
    try:
        status = _run(sys.argv[1:])
    except Exception:  # a defect: shown whole, and nothing after it, so that the job's last line says it
        traceback.print_exc()
        status = 1
    distributed = sys.modules.get("allspark.runtime.collectives")
    if distributed is not None and distributed.processes() > 1:
        distributed.leave(status)
    return status


def _run(arguments: list[str]) -> int:
    try:
        status = int(app(arguments or ["--help"], standalone_mode=False, prog_name="allspark") or 0)
        return _fail("interrupted", status) if status == _CTRL_C else status
    except UserError as error:
        status = getattr(error, "exit_code", 2)
        return status if error.quiet else _fail(str(error), status)
    except typer.Abort:  # what older versions of typer make of Ctrl-C
        return _fail("interrupted", _CTRL_C)
    except BrokenPipeError:  # `allspark config show voc | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}")
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "allspark"
        return _fail(f"{error.format_message().replace('Value error, ', '')} (see `{command} --help`)")


def _fail(message: str, status: int = 2) -> int:
    head = "error: " if status == 2 else ""  # an interrupted run made no mistake
    print(head + " ".join(message.splitlines()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
