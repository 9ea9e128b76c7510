"""Compiled, a run is the same."""

import json
import subprocess
import sys

import pytest
import torch

from allspark.config.files import apply_overrides, load_recipe, save_config
from allspark.errors import ConfigError
from allspark.runtime import devices
from allspark.runtime.devices import require_compiler
from tests.conftest import TINY

# In a process of its own: what tests do to the functions' types cannot be compiled.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
torch.set_num_threads(1)
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.config.files import apply_overrides, load_config

config, folder = load_config(Path(sys.argv[1])), Path(sys.argv[2])
for compiled in (True, False):
    train(apply_overrides(config, [f"train.compile={str(compiled).lower()}"]), folder / str(compiled))
rows = [read_log(folder / str(compiled)) for compiled in (False, True)]
scores = [[{name: row[name] for name in ("loss", "miou") if name in row} for row in run] for run in rows]
print(json.dumps({"rows": scores, "breaks": dict(counters["graph_break"]), **counters["stats"]}))
"""


@pytest.mark.slow
def test_a_compiled_run_is_the_same(tmp_path, tiny_folder):
    """The memory is read from the third of six steps on: that compiles nothing anew."""
    changes = ["train.precision=fp64", "eval.precision=fp64", "train.epochs=3", "train.health_images=0"]
    still = ["model.decoder_dropout=0", "model.bottleneck_dropout=0", f"data.root={tiny_folder}"]
    save_config(apply_overrides(load_recipe("folder"), [*TINY, *changes, *still]), tmp_path / "config.yaml")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.yaml"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    plain, compiled = found["rows"]
    assert len(plain) == len(compiled) == 9
    for row, again in zip(plain, compiled, strict=True):
        assert again == pytest.approx(row, rel=1e-9)
    assert not found["breaks"]
    # a trial, then encoder and decoder thrice: for pseudo-labels, in training, and on whole images in validation
    assert found["unique_graphs"] == 7


def test_a_machine_without_a_compiler_is_one_line(monkeypatch):
    def broken(function):
        def call(*_):
            from torch._dynamo.exc import TorchDynamoException

            raise TorchDynamoException("\nno working C++ compiler\nand much more")

        return call

    monkeypatch.setattr(devices.torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"^train.compile does not work .* \(no working C\+\+ compiler\)"):
        require_compiler(torch.device("cpu"))
