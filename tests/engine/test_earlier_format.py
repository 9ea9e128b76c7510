"""A run that version 0.1 wrote and that was stopped half way: it opens, and goes on as it would have then."""

from __future__ import annotations

import shutil

import pytest
import torch

from allspark.cli.app import main
from allspark.config.files import apply_overrides
from allspark.data.sets.synthetic import generate
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from allspark.engine.run import open_run
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.runtime.signals import Interrupted
from tests.conftest import REPOSITORY
from tests.fakes import ENCODERS
from tests.helpers import StopAfter, assert_same_run


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


def test_a_plain_transformer_goes_on_with_the_layers_that_it_had(tiny_config, tiny_folder, tmp_path):
    """Its configuration did not say which: in earlier runs those were the last four."""
    sizes = ENCODERS["dinov2"] | {"num_hidden_layers": 6}
    change = [f"data.root={tiny_folder}", "model.encoder=dinov2", "method.name=supervised", "train.epochs=1"]
    change += ["model.encoder_config={}", *(f"model.encoder_config.{name}={value}" for name, value in sizes.items())]
    config = apply_overrides(tiny_config, change)
    last = apply_overrides(config, ["model.encoder_config.out_indices=[3, 4, 5, 6]"])
    train(last, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(last, tmp_path / "parts", sinks=[StopAfter(1)])
    path = checkpoint_path(tmp_path / "parts", "last")
    checkpoint = load_checkpoint(path)
    del checkpoint.meta["config"]["model"]["encoder_config"]["out_indices"]
    save_checkpoint(path, checkpoint.tensors, checkpoint.meta)
    assert open_run(tmp_path / "parts", "last").segmenter.encoder.body.out_indices == [3, 4, 5, 6]
    train(config, tmp_path / "parts", resume=True)  # as config.yaml was then
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
