"""What other systems do differently, as far as it can be simulated: Windows' calls, and readers that are not forked."""

import subprocess
import sys

import pytest

from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from tests.conftest import TINY
from tests.helpers import assert_same_run

WINDOWS = """
import os, signal, sys, types
from pathlib import Path

locked = []
def locking(handle, mode, length):
    if locked:
        raise PermissionError(13, "Permission denied")
    locked.append((handle, mode, length))
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
sys.modules["fcntl"] = sys.modules["resource"] = None  # importing them is an error
del signal.SIGUSR1
del os.O_NOFOLLOW
sys.platform = "win32"
open_file = os.open
def no_folders(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_file(path, *arguments, **options)
os.open = no_folders

from allspark.files import atomic_write, lock_folder
from allspark.runtime.signals import StopRequest

folder = Path(sys.argv[1])
with atomic_write(folder / "a.txt", "w") as file:
    file.write("whole")
assert (folder / "a.txt").read_text() == "whole" and not list(folder.glob(".*.tmp"))
first = lock_folder(folder)
try:
    lock_folder(folder)
except PermissionError:
    print("claimed once")
with StopRequest() as stop:
    signal.raise_signal(signal.SIGTERM)
assert stop.exit_code == 143
"""


def test_files_locks_and_signals_use_what_windows_has(tmp_path):
    done = subprocess.run([sys.executable, "-c", WINDOWS, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "claimed once\n"), done.stderr


TRAIN = """
import multiprocessing, sys
from pathlib import Path

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from allspark.cli.app import main

    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_readers_that_are_spawned_read_what_forked_ones_do(tiny_folder, tmp_path):
    """As on macOS and Windows: all that a reader needs has to be pickled."""
    script = tmp_path / "start.py"
    script.write_text(TRAIN)
    changes = [*TINY, f"data.root={tiny_folder}", "data.workers=2", "train.health_images=2"]
    options = [word for change in changes for word in ("--set", change)]
    for way in ("fork", "spawn"):
        command = [
            sys.executable,
            str(script),
            way,
            "train",
            "--recipe",
            "folder",
            "--out",
            str(tmp_path / way),
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert load_checkpoint(checkpoint_path(tmp_path / "spawn", "last")).meta["state"]["step"] == 4
    assert_same_run(tmp_path / "fork", tmp_path / "spawn")
