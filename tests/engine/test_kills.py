"""A run killed at any moment, again and again, ends as one that never was."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from allspark.config.files import apply_overrides, load_recipe, save_config
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import read_log
from tests.conftest import TINY

# A process that has imported everything and forks the runs, so that fifty starts take seconds.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from allspark.engine import checkpoint
from allspark.engine.train import train
from allspark.config.files import load_config

config, folder, wanted = load_config(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(0)

def die_in_write(number):
    # Die while the checkpoint of this number is being written, at a random byte of it.
    save, writes = checkpoint.save_file, 0
    def half(tensors, path, header):
        nonlocal writes
        save(tensors, path, header)
        writes += 1
        if writes == number:
            os.truncate(path, rng.randrange(os.path.getsize(path)))
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save_file = half

def start(out, die_at=0):
    child = os.fork()
    if child == 0:
        try:
            die_in_write(die_at)
            train(config, out, resume=True)
            os._exit(0)
        finally:
            os._exit(1)
    return child

began = time.monotonic()
assert os.waitpid(start(folder / "whole"), 0)[1] == 0
length = time.monotonic() - began
kills, in_writes, runs = 0, 0, 0
while kills < wanted:
    out = folder / f"parts{runs}"
    runs += 1
    while True:
        in_write = kills % 5 == 4
        child = start(out, rng.randint(1, 4) if in_write else 0)
        until = time.monotonic() + (1000 if in_write else rng.uniform(0, 0.6 * length))
        done = 0
        while time.monotonic() < until and not done:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.0005)
        if not done:
            os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
        in_writes += bool(list(out.glob("checkpoints/.*.tmp")))
print(json.dumps({"kills": kills, "in_writes": in_writes, "runs": runs}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_kills(tiny_folder, tmp_path, workers):
    changes = [
        f"data.root={tiny_folder}",
        f"data.workers={workers}",
        "train.checkpoint_every=1",
        "train.health_images=2",
    ]
    config = apply_overrides(load_recipe("folder"), [*TINY, "train.epochs=3", "train.steps_per_epoch=5", *changes])
    save_config(config, tmp_path / "config.yaml")
    (tmp_path / "kills.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "kills.py"), str(tmp_path / "config.yaml"), str(tmp_path), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["kills"] >= 50 and seen["in_writes"] >= 5, seen
    whole = tmp_path / "whole"
    expected = load_checkpoint(checkpoint_path(whole, "last"))
    rows = [{name: value for name, value in row.items() if not name.startswith(("images_per_s", "seconds"))}
            for row in read_log(whole)]  # fmt: skip
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 16))
    for number in range(seen["runs"]):
        parts = tmp_path / f"parts{number}"
        found = load_checkpoint(checkpoint_path(parts, "last"))
        assert found.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in expected.tensors.items())
        for name in ("step", "best", "last", "best_step", "warned", "initial"):
            assert found.meta["state"][name] == expected.meta["state"][name]
        again = [{name: row[name] for name in row if not name.startswith(("images_per_s", "seconds"))}
                 for row in read_log(parts)]  # fmt: skip
        assert again == rows
        assert not list(parts.rglob("*.tmp"))
