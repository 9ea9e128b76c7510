"""What is infinite or not a number costs a step or ends the run; it is never saved, and the advice works."""

import pytest
import torch

from allspark.config.files import apply_overrides
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from allspark.engine.run import open_run
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.errors import CheckpointError, NotFiniteError, UserError
from allspark.methods import METHODS
from tests.helpers import Lines


@pytest.fixture
def config(tiny_config, tiny_folder):
    changes = [f"data.root={tiny_folder}", "train.steps_per_epoch=30", "train.epochs=1", "train.checkpoint_every=1"]
    return apply_overrides(tiny_config, changes)


@pytest.fixture
def gradient_breaks(monkeypatch):
    """From a step on, for some steps, one number of the gradient is NaN while all losses are finite."""

    def from_step(first, steps=1):
        forward = METHODS["allspark"].forward

        def breaks(self, batch, progress):
            bias = self.segmenter.decoder.classifier.bias
            if not hasattr(self, "step_now"):
                nan = torch.tensor([float("nan"), *[0.0] * (len(bias) - 1)])
                bias.register_hook(lambda x: x + nan if first <= self.step_now < first + steps else x)
            self.step_now = progress.step + 1
            return forward(self, batch, progress)

        monkeypatch.setattr(METHODS["allspark"], "forward", breaks)

    return from_step


def last_of(run):
    """The last checkpoint, whose tensors are finite: it would not be read else."""
    return load_checkpoint(checkpoint_path(run, "last"))


@pytest.mark.parametrize("clip", ["null", "1"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_is_not_learned_from(config, tmp_path, gradient_breaks, clip, accumulate):
    gradient_breaks(4)
    config = apply_overrides(config, [f"optim.clip_norm={clip}", f"optim.accumulate={accumulate}"])
    config = apply_overrides(config, ["train.checkpoint_every=2", "train.steps_per_epoch=6"])
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert "the gradient is nan in step 4 (images labeled_" in str(error.value)
    assert "of step 2 is good: go on with --resume --set train.on_nan=skip" in str(error.value)
    assert last_of(tmp_path / "run").meta["state"]["step"] == 2
    said = Lines()
    goes_on = apply_overrides(config, ["train.on_nan=skip"])  # as it is told
    assert train(goes_on, tmp_path / "run", resume=True, sinks=[said]).steps == 6
    (line,) = [line for line in said.lines if "skipped" in line]
    assert line.startswith("skipped: step 4, whose gradient is not finite (images labeled_")
    last_of(tmp_path / "run")


def test_a_run_that_only_skips_ends(config, tmp_path, gradient_breaks):
    gradient_breaks(3, steps=100)
    config = apply_overrides(config, ["train.on_nan=skip", "optim.clip_norm=1", "train.log_every=1"])
    with pytest.raises(UserError, match=r"25 steps in a row up to step 27 .*; begin a new run with a lower optim.lr"):
        train(config, tmp_path / "run")
    assert [row["step"] for row in read_log(tmp_path / "run") if "loss" in row] == [1, 2]
    assert last_of(tmp_path / "run").meta["state"]["step"] == 26


def test_weights_that_explode_are_not_called_good(config, tmp_path):
    config = apply_overrides(config, ["optim.lr=1e36", "optim.name=sgd"])
    with pytest.raises(UserError, match="of the step before, whose weights may be the cause: begin a new run"):
        train(config, tmp_path / "run")
    skipping = apply_overrides(config, ["train.on_nan=skip"])
    with pytest.raises(UserError, match=r"25 steps in a row .* begin a new run"):
        train(skipping, tmp_path / "run", resume=True)


def test_weights_that_are_not_finite_are_not_saved(config, tmp_path, monkeypatch):
    after = METHODS["allspark"].after_step

    def breaks(self, progress):
        after(self, progress)
        if progress.step == 2:
            self.segmenter.decoder.classifier.bias.data[0] = float("inf")

    monkeypatch.setattr(METHODS["allspark"], "after_step", breaks)
    with pytest.raises(UserError, match=r"'model.decoder.classifier.bias' is not finite; .*last.safetensors is of "):
        train(config, tmp_path / "run")
    assert last_of(tmp_path / "run").meta["state"]["step"] == 2


def test_checkpoints_that_are_not_finite_are_not_opened(config, tmp_path, monkeypatch):
    """Earlier versions wrote some."""
    train(apply_overrides(config, ["train.steps_per_epoch=1"]), tmp_path / "run")
    path = checkpoint_path(tmp_path / "run", "best")
    found = load_checkpoint(path)
    found.tensors["model.decoder.classifier.bias"][0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"not written, since 'model.decoder.classifier.bias' is not finite"):
        save_checkpoint(path, found.tensors, found.meta)
    monkeypatch.setattr("allspark.engine.checkpoint._not_finite", lambda tensors: None)
    save_checkpoint(path, found.tensors, found.meta)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"best.safetensors: 'model.decoder.classifier.bias' is not finite"):
        open_run(tmp_path / "run")


def test_the_norm_of_the_gradient_is_logged(config, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def hears(optimizer, *arguments):
        grads = [x.grad for group in optimizer.param_groups for x in group["params"] if x.grad is not None]
        norms.append(float(sum((x.double() ** 2).sum() for x in grads) ** 0.5))
        return step(optimizer, *arguments)

    monkeypatch.setattr("torch.optim.SGD.step", hears)
    config = apply_overrides(config, ["optim.name=sgd", "train.log_every=1", "train.steps_per_epoch=3"])
    train(config, tmp_path / "run")
    logged = [row["grad_norm"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert logged == pytest.approx(norms, rel=1e-5) and len(norms) == 3
