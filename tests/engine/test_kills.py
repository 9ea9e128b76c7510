"""A run killed at any moment, again and again, or at each of its writes, ends as one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from allspark.config.files import apply_overrides, load_recipe, save_config
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import read_log
from tests.conftest import TINY
from tests.helpers import assert_same_run

# How many times a run is killed, for each number of processes and of workers.
KILLS = int(os.environ.get("ALLSPARK_KILLS", "20"))

# A process that has imported everything and forks the runs, so that fifty starts take seconds.
SCRIPT = """
import json, os, random, signal, socket, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from allspark.engine import checkpoint
from allspark.engine.train import train
from allspark.config.files import load_config
from allspark.errors import UserError
from allspark.runtime.agreement import leave_group

config, folder, wanted, processes = load_config(Path(sys.argv[1])), Path(sys.argv[2]), *map(int, sys.argv[3:])
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
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            try:
                if processes > 1:
                    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
                if rank == 0:
                    die_in_write(die_at)
                train(config, out, resume=True, sinks=[])
                leave_group()
                os._exit(0)
            except UserError:
                os._exit(3)  # a peer is gone
            finally:
                os._exit(1)
        children.append(child)
    return children

def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

def wait(children, until):
    # The statuses of those that end until then, or in a moment after one of them did.
    statuses = {}
    while len(statuses) < len(children) and time.monotonic() < until:
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = status
                    until = min(until, time.monotonic() + 20)
        time.sleep(0.0005)
    return statuses

began = time.monotonic()
whole = start(folder / "whole")
assert list(wait(whole, began + 300).values()) == [0] * processes
length = time.monotonic() - began
kills, in_writes, runs = 0, 0, 0
while kills < wanted:
    out = folder / f"parts{runs}"
    runs += 1
    while True:
        in_write = kills % 5 == 4
        children = start(out, rng.randint(1, 4) if in_write else 0)
        statuses = wait(children, time.monotonic() + (1000 if in_write else rng.uniform(0, 0.6 * length)))
        left = [child for child in children if child not in statuses]
        if processes > 1 and left and rng.random() < 0.3:  # one dies, the others notice
            victim = rng.choice(left)
            os.kill(victim, signal.SIGKILL)
            statuses |= wait(left, time.monotonic() + 30)
            left = [child for child in children if child not in statuses]
        for child in left:
            os.kill(child, signal.SIGKILL)
            statuses[child] = os.waitpid(child, 0)[1]
        codes = [os.waitstatus_to_exitcode(status) for status in statuses.values()]
        if codes == [0] * processes:
            break
        assert set(codes) <= {0, 3, -signal.SIGKILL} and -signal.SIGKILL in codes, codes
        kills += 1
        in_writes += bool(list(out.glob("checkpoints/.*.tmp")))
print(json.dumps({"kills": kills, "in_writes": in_writes, "runs": runs}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_many_kills(tiny_folder, tmp_path, processes, workers):
    changes = [
        f"data.root={tiny_folder}",
        f"data.workers={workers}",
        "train.checkpoint_every=1",
        "train.health_images=2",
    ]
    config = apply_overrides(load_recipe("folder"), [*TINY, "train.epochs=3", "train.steps_per_epoch=5", *changes])
    save_config(config, tmp_path / "config.yaml")
    (tmp_path / "kills.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(tmp_path / "kills.py"),
        str(tmp_path / "config.yaml"),
        str(tmp_path),
        str(KILLS),
        str(processes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=18 * KILLS)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["kills"] >= KILLS and seen["in_writes"] >= KILLS / 10, seen
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


# Every file of a run gets its name by os.replace: to die before each of these calls, and after each, is to die between
# every pair of writes.
WRITES = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from allspark.engine.train import train
from allspark.config.files import load_config

config, folder = load_config(Path(sys.argv[1])), Path(sys.argv[2])
replace = os.replace

def run(out, number, after):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def dies(source, target):
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        print(Path(target).name, flush=True) if number == 0 else None
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = dies
    try:
        train(config, out, resume=True, sinks=[])
        os._exit(0)
    finally:
        os._exit(1)

assert run(folder / "whole", 0, False) == 0
number = 0
while True:
    number += 1
    statuses = [run(folder / f"{number}{when}", number, when == "after") for when in ("before", "after")]
    if statuses == [0, 0]:
        break
    assert statuses == [-signal.SIGKILL] * 2, (number, statuses)
    for when in ("before", "after"):
        assert run(folder / f"{number}{when}", -1, False) == 0, (number, when)
print("died at", number - 1)
"""


@pytest.mark.slow
def test_killed_before_and_after_each_write(tiny_folder, tmp_path):
    changes = ["train.keep_every=2", "train.checkpoint_every=1", "train.epochs=2", "train.steps_per_epoch=2"]
    config = apply_overrides(load_recipe("folder"), [*TINY, *changes, f"data.root={tiny_folder}"])
    save_config(config, tmp_path / "config.yaml")
    (tmp_path / "writes.py").write_text(WRITES)
    command = [sys.executable, str(tmp_path / "writes.py"), str(tmp_path / "config.yaml"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=18 * KILLS)
    assert done.returncode == 0, done.stderr
    *names, last = done.stdout.splitlines()
    writes = int(last.removeprefix("died at "))
    assert writes == len(names) >= 10
    assert {"config.yaml", "log.jsonl", "log.csv", "last.safetensors", "best.safetensors", "result.json"} < set(names)
    for number in range(1, writes + 1):
        for when in ("before", "after"):
            assert_same_run(tmp_path / "whole", tmp_path / f"{number}{when}")
            assert not list((tmp_path / f"{number}{when}").rglob("*.tmp"))
            for name in (
                "result.json",
                "checkpoints/step-00000002.safetensors",
                "checkpoints/step-00000004.safetensors",
            ):
                assert (tmp_path / f"{number}{when}" / name).is_file(), (names[number - 1], when, name)
