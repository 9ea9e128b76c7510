"""What a resumed run takes over, what it may change, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from allspark.config.files import apply_overrides, load_config
from allspark.engine import train as train_module
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.errors import CheckpointError, ConfigError, DataError
from allspark.methods import METHODS
from allspark.runtime.signals import Interrupted, StopRequest
from tests.helpers import Lines, StopAfter, assert_same_run, choose, link_to


@pytest.fixture
def config(tiny_config, tiny_folder):
    return apply_overrides(tiny_config, [f"data.root={tiny_folder}", "train.checkpoint_every=100"])


STEPS = [
    *("optim.accumulate=2", "optim.clip_norm=0.5", "train.precision=bf16", "seed=7", "optim.name=adamw"),
    "optim.name=adamw optim.decay_norms=false optim.warmup_steps=2 optim.schedule=cosine train.precision=bf16",
    "method.name=fixmatch optim.name=adamw",
    "method.name=fixmatch model.bottleneck=allspark method.confidence=0.2",
    "model.bottleneck_gate=true model.bottleneck_own=0.5",
    "method.name=cps model.auxiliary_weight=0.4 method.labeled_loss=ohem",
    "method.name=fixmatch method.colours=random-list method.filter=class-wise method.ramp_epochs=2",
    "method.name=unimatch method.filter=percentile method.supervised_epochs=0.5",
    "method.name=supervised method.ema_decay=0.9",
    "method.name=u2pl method.supervised_epochs=0.5 method.bank_sizes=[90,70] method.contrast_rule=code",
    "method.name=gta-seg method.supervised_epochs=0.5 method.tie_classifier=true method.assistant_lr=constant",
]
MORE_STEPS = [
    *(" ".join([*choose(name), "optim.name=adamw"]) for name in METHODS),
    "method.name=unimatch method.partner=reversed method.confidence=0.2 optim.accumulate=2",
    "method.name=prevmatch method.history=1 method.confidence=0.2 method.old_confidence=0.2",
    "method.name=corrmatch method.confidence=0.2 optim.accumulate=2",
    "method.name=semivl method.trust=confidence optim.accumulate=2",
    "method.name=pseudoseg method.cutout=20 method.calibration=batch",
    "method.name=cps method.cutmix=false",
    "method.name=cutmix-seg method.unlabeled_views=strong method.confidence=0.2 method.distance=kl",
    "method.name=augseg method.confidence=0.2 model.bottleneck=allspark",
    "method.name=ael method.unlabeled_views=strong method.confidence=0.2 method.paste=1 optim.accumulate=2",
    "method.name=fpl method.cutmix=false method.fuzziness=convex",
    "method.name=fpl-ael method.sampling=false method.paste_draws=3 method.adaptive_boxes=false",
    "method.name=dgcl method.supervised_epochs=0 method.bank_size=40 method.dense=9 method.neighbours=[3]",
    "method.name=mkd optim.accumulate=2",
    "method.name=ccvc method.conflict=code method.confidence=0.2",
    "method.name=ps-mt method.supervised_epochs=0.5 method.ramp_epochs=0.5 method.confidence=0.2",
    "method.name=semicvt method.unlabeled_views=strong method.filter=class-wise method.supervised_epochs=0.5",
]


@pytest.mark.parametrize("changes", [*STEPS, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_STEPS)])
def test_settings_that_touch_the_step_resume_exactly(config, tmp_path, changes):
    config = apply_overrides(config, [*changes.split(), "train.log_every=3"])
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted) as stopped:
        train(config, tmp_path / "parts", sinks=[StopAfter(3)])
    assert stopped.value.exit_code == 130
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_signal_to_the_whole_job_finishes_the_step(config, tmp_path):
    """As a scheduler does it: SIGTERM to every process, so the readers of images die while the run saves itself."""
    config = apply_overrides(config, ["train.steps_per_epoch=30", "data.workers=2", "train.log_every=1"])
    train(config, tmp_path / "whole")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom allspark.config.schema import Config\n"
        "from allspark.engine.train import train\nfrom allspark.runtime.signals import Interrupted\n"
        f"config = Config.model_validate_json({config.model_dump_json()!r})\n"
        f"try: train(config, Path({str(tmp_path / 'parts')!r}))\n"
        "except Interrupted as stop: print(stop); sys.exit(stop.exit_code)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "parts")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "allspark train --out" in out and "Traceback" not in errors
    assert load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).meta["state"]["step"] >= 2
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_ctrl_c_does_not_wait(capfd):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in a shell's background
    with pytest.raises(KeyboardInterrupt), StopRequest("being saved") as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        assert capfd.readouterr().err == "\nbeing saved\n"  # at once
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_bad_image_costs_no_step_that_was_done(config, tmp_path, tiny_folder, monkeypatch):
    config = apply_overrides(config, ["data.on_bad_image=stop"])
    train(config, tmp_path / "whole")
    batches = train_module.train_batches

    def breaks(*args, **kwargs):
        stream = batches(*args, **kwargs)
        yield next(stream)
        yield next(stream)
        yield next(stream)
        raise DataError("image.png: truncated")

    monkeypatch.setattr(train_module, "train_batches", breaks)
    with pytest.raises(DataError, match=r"image\.png"):
        train(config, tmp_path / "parts")
    assert load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).meta["state"]["step"] == 3
    monkeypatch.setattr(train_module, "train_batches", batches)
    train(apply_overrides(config, ["data.on_bad_image=skip"]), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_resume_needs_no_pretrained_weights(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    gone = apply_overrides(config, [f"model.pretrained={tmp_path / 'gone.pth'}"])
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        train(gone, tmp_path / "other")
    assert train(gone, tmp_path / "run", resume=True).steps == 4


def test_what_may_change_is_said_and_kept(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    said = Lines()
    changes = ["data.workers=1", "data.keep_decoded=0", "model.activation_checkpointing=true"]
    train(apply_overrides(config, changes), tmp_path / "run", resume=True, sinks=[said])
    assert "note: goes on with data.workers = 1, before it was 0" in said.lines
    assert "note: goes on with model.activation_checkpointing = True, before it was False" in said.lines
    assert load_config(tmp_path / "run" / "config.yaml").data.workers == 1


def test_other_images_are_refused(config, tmp_path, tiny_folder, monkeypatch):
    root = link_to(tiny_folder, tmp_path / "data")
    config = apply_overrides(config, [f"data.root={root}"])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    before = checkpoint_path(tmp_path / "run", "last").read_bytes()
    names = (root / "val.txt").read_text().splitlines()
    (root / "val.txt").write_text("\n".join(names[1:]) + "\n")
    with pytest.raises(ConfigError, match=r"data\.\w+ held \d+ images"):
        train(config, tmp_path / "run", resume=True)
    assert checkpoint_path(tmp_path / "run", "last").read_bytes() == before
    (root / "val.txt").write_text("\n".join(names) + "\n")
    assert train(config, tmp_path / "run", resume=True).steps == 4


def test_a_moved_data_set_is_taken(config, tmp_path, tiny_folder, monkeypatch):
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    moved = apply_overrides(config, [f"data.root={link_to(tiny_folder, tmp_path / 'moved')}"])
    assert train(moved, tmp_path / "run", resume=True).steps == 4


def test_the_loss_scale_of_fp16_goes_on(config, tmp_path, monkeypatch):
    """A scaler on the CPU stands in for the GPU's: powers of two change no result, and its count is kept."""
    plain = train_module.start_processes

    def scaled(*arguments):
        accelerator = plain(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        return accelerator

    monkeypatch.setattr(train_module, "start_processes", scaled)
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", sinks=[StopAfter(2)])
    train(config, tmp_path / "parts", resume=True)
    a, b = (load_checkpoint(checkpoint_path(tmp_path / run, "last")).meta["scaler"] for run in ("whole", "parts"))
    assert a == b and a["scale"] == 8.0 and a["_growth_tracker"] == 1
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_unfinished_writes_of_a_killed_run_are_removed(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    debris = [tmp_path / "run" / "checkpoints" / ".last.safetensors.x1.tmp", tmp_path / "run" / ".log.csv.x2.tmp"]
    for path in debris:
        path.write_bytes(b"half")
    train(config, tmp_path / "run", resume=True)
    assert not any(path.exists() for path in debris)


def test_a_damaged_checkpoint_is_not_resumed(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", sinks=[StopAfter(1)])
    path = checkpoint_path(tmp_path / "run", "last")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=str(path)):
        train(config, tmp_path / "run", resume=True)


def test_a_finished_run_says_so(config, tmp_path):
    first = train(config, tmp_path / "run")
    before = checkpoint_path(tmp_path / "run", "last").read_bytes()
    said = Lines()
    assert train(config, tmp_path / "run", resume=True, sinks=[said]) == first
    assert "finished already, 4 of 4 steps" in said.lines[-1]
    assert checkpoint_path(tmp_path / "run", "last").read_bytes() == before


def test_a_run_that_was_killed_before_it_wrote_its_result_writes_it(config, tmp_path):
    """All steps are done and saved; without this a study would wait for the result for ever."""
    run = tmp_path / "run"
    train(config, run)
    whole = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    (run / ".result.json.half.tmp").write_text('{"method"')
    assert train(config, run, resume=True).steps == 4
    assert json.loads((run / "result.json").read_text()) | {"finished": ""} == whole | {"finished": ""}
    assert not list(run.rglob("*.tmp"))
