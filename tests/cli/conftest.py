"""A finished run for all tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from allspark.cli.app import main
from tests.conftest import TINY

SET = [part for override in TINY for part in ("--set", override)]
"""Options that make any recipe small enough for a test on one core."""


@pytest.fixture(scope="session")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read only."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    assert main(["train", "--recipe", "folder", "--data", str(tiny_folder), "--out", str(out), *SET]) == 0
    return out
