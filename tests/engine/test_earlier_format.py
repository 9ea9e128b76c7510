"""A run that version 0.1 wrote and that was stopped half way: it opens, and goes on as it would have then."""

from __future__ import annotations

import shutil

import pytest
import torch

from allspark.cli.app import main
from allspark.data.sets.synthetic import generate
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.run import open_run
from allspark.engine.sinks import read_log
from tests.conftest import REPOSITORY


@pytest.fixture
def earlier(tmp_path):
    """Its configuration has `method.warmup_epochs`, its optimiser `momentum.*`; its log shows how it went on."""
    return shutil.copytree(REPOSITORY / "tests" / "golden" / "run-0.1", tmp_path / "run")


def test_it_opens(earlier):
    run = open_run(earlier, "last")
    assert run.segmenter.bottleneck is not None and run.config.method.name == "allspark"
    assert (run.config.model.bottleneck_warmup_epochs, run.meta["format"]) == (1, 1)
    mask = run.predictor().labels(torch.zeros(1, 3, 40, 50))
    assert mask.shape == (1, 40, 50)


def test_it_goes_on_as_it_would_have(earlier, tmp_path, capsys):
    generate(tmp_path / "scenes", labeled=4, unlabeled=6, val=3, size=(64, 80), seed=0)
    then = {row["step"]: row["loss"] for row in read_log(earlier) if "loss" in row}
    assert main(["train", "--out", str(earlier), "--resume", "--data", str(tmp_path / "scenes")]) == 0
    said = capsys.readouterr().err
    assert "goes on with data.root" in said and said.count("goes on with") == 1
    now = {row["step"]: row["loss"] for row in read_log(earlier) if "loss" in row}
    assert now == pytest.approx(then, rel=1e-5) and len(now) == 4
    checkpoint = load_checkpoint(checkpoint_path(earlier, "last"))
    assert checkpoint.meta["format"] == 2 and not checkpoint.part("momentum.")
    assert checkpoint.part("optim.momentum_buffer.")
