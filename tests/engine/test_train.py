"""The loop: what it writes, what it refuses, and that a run interrupted anywhere goes on as if nothing had happened."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from allspark.batch import Progress, StepOutput, Term
from allspark.config.files import apply_overrides, load_config, save_config
from allspark.data.image import read_image
from allspark.data.pseudo import with_pseudo
from allspark.data.sets import open_source
from allspark.data.stream import TrainStream
from allspark.engine import run_folder
from allspark.engine.checkpoint import checkpoint_path, kept_checkpoints, load_checkpoint
from allspark.engine.result import read_result
from allspark.engine.run import begin_with, open_run
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.errors import CheckpointError, ConfigError, DataError, UserError
from allspark.methods import METHODS, build_method
from allspark.runtime.signals import Interrupted
from tests.helpers import Lines, StopAfter, assert_same_run, choose, each_method, losses


@pytest.fixture
def config(tiny_config, tiny_folder):
    return apply_overrides(tiny_config, [f"data.root={tiny_folder}", "train.checkpoint_every=1"])


def stream_of(source, config, method):
    return TrainStream(source, config.data, config.views, method.views, seed=config.seed, rank=0, world=1)


def broken_loss(output, value=float("nan")):
    term = Term(torch.tensor(value, requires_grad=True), torch.tensor(1))
    return StepOutput({name: term for name in output.terms}, output.metrics, output.class_pixels)


@pytest.mark.parametrize("method", each_method())
def test_a_run_leaves_config_log_and_checkpoints(config, tmp_path, method):
    config = apply_overrides(config, choose(method))
    result = train(config, tmp_path / "run")
    assert result.steps == 4 and result.best is not None and 0 <= result.last <= result.best <= 1
    assert load_config(tmp_path / "run" / "config.yaml").method.name == method
    rows = read_log(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "miou" in row] == [2, 4]
    assert max(row["miou"] for row in rows if "miou" in row) == result.best
    with (tmp_path / "run" / "log.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) and float(table[0]["loss"]) == rows[0]["loss"]
    assert ("memory_fill" in rows[0]) == (method == "allspark")
    run = open_run(tmp_path / "run")
    assert run.segmenter.num_classes == len(run.classes) == 6 and not run.segmenter.training
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_learning_rate_follows_poly_from_the_first_step(config, tmp_path):
    train(config, tmp_path / "run")
    rates = [row["lr"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert rates == pytest.approx([0.01 * (1 - i / 4) ** 0.9 for i in range(4)], rel=1e-12)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_is_exact(config, tmp_path, workers, stop_after):
    config = apply_overrides(config, [f"data.workers={workers}", "model.bottleneck_warmup_epochs=0.5"])
    train(config, tmp_path / "whole")
    stop = StopAfter(stop_after, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="--resume") as stopped:
        train(config, tmp_path / "parts", sinks=[stop])
    assert stopped.value.exit_code == 143
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_inside_a_log_row_keeps_its_mean(config, tmp_path):
    config = apply_overrides(config, ["train.log_every=3"])
    train(config, tmp_path / "whole")
    for attempt in range(3):
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts", resume=attempt > 0, sinks=[StopAfter(1)])
    train(config, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.slow
def test_a_killed_process_resumes_exactly(config, tmp_path):
    """SIGKILL at whatever moment; the log is cut back to the checkpoint and written again."""
    config = apply_overrides(config, ["train.steps_per_epoch=20", "train.checkpoint_every=3", "data.workers=1"])
    train(config, tmp_path / "whole")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom allspark.config.schema import Config\nfrom allspark.engine.train import train\n"
        f"config = Config.model_validate_json({config.model_dump_json()!r})\n"
        f"train(config, Path({str(tmp_path / 'parts')!r}), resume=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    path = checkpoint_path(tmp_path / "parts", "last")
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_validation_does_not_disturb_training(config, tmp_path):
    often = apply_overrides(config, ["train.steps_per_epoch=1", "train.epochs=4", "model.bottleneck_warmup_epochs=2"])
    rarely = apply_overrides(often, ["train.eval_every=4"])
    train(often, tmp_path / "often")
    train(rarely, tmp_path / "rarely")
    assert losses(tmp_path / "often") == losses(tmp_path / "rarely")


@pytest.mark.parametrize(("accumulate", "clip"), [(1, "null"), (2, "null"), (2, "0.1")])
def test_the_loop_equals_a_naive_one(config, tmp_path, accumulate, clip):
    """Plain torch, step by step: the mean over all pixels of the update, clipping, SGD, poly."""
    config = apply_overrides(
        config, ["train.precision=fp64", f"optim.accumulate={accumulate}", f"optim.clip_norm={clip}"]
    )
    train(config, tmp_path / "run")
    source = open_source(config.data)
    torch.manual_seed(config.seed)
    method = build_method(config, source.num_classes).double().train()
    encoder = set(method.segmenter.encoder.parameters())
    groups = [{"params": [p for p in method.parameters() if (p in encoder) == inside]} for inside in (True, False)]
    optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9, weight_decay=1e-4)
    stream = stream_of(source, config, method)
    expected = []
    for step in range(4):
        for group, factor in zip(optimizer.param_groups, (1, config.optim.head_multiplier), strict=True):
            group["lr"] = 0.01 * factor * (1 - step / 4) ** 0.9
        parts = [stream[step * accumulate + part].with_images(torch.float64) for part in range(accumulate)]
        pixels = {"labeled": sum(int((part.labeled.mask != 255).sum()) for part in parts)}
        pixels["unlabeled"] = sum(int(part.unlabeled.valid.sum()) for part in parts)
        total = 0.0
        for part in parts:
            terms = method(part, Progress(step, 2, 4)).terms
            loss = sum(0.5 * term.total / pixels[name] for name, term in terms.items())
            loss.backward()
            total += float(loss.detach())
        if clip != "null":
            torch.nn.utils.clip_grad_norm_(method.parameters(), float(clip))
        optimizer.step()
        optimizer.zero_grad()
        expected.append((step + 1, total))
    assert dict(losses(tmp_path / "run")) == pytest.approx(dict(expected), rel=1e-12)
    final = load_checkpoint(checkpoint_path(tmp_path / "run", "last")).part("model.")
    for name, value in method.segmenter.state_dict().items():
        torch.testing.assert_close(final[name], value, rtol=1e-10, atol=1e-12)


# ps-mt deploys a teacher that begins apart from the network.
@pytest.mark.parametrize("method", each_method("supervised", "ps-mt"))
def test_methods_start_from_the_same_weights(config, tmp_path, method):
    states = []
    for one in ("supervised", method):
        still = apply_overrides(config, [*choose(one), "optim.lr=1e-30", "optim.weight_decay=0", "train.epochs=0.5"])
        train(still, tmp_path / one)
        states.append(load_checkpoint(checkpoint_path(tmp_path / one, "last")).part("model."))
    for name, tensor in states[0].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-12)


def test_two_runs_in_one_process_may_differ_in_precision(config, tmp_path):
    for precision in ("fp64", "bf16", "fp32"):
        chosen = apply_overrides(config, [f"train.precision={precision}", "train.epochs=0.5"])
        assert train(chosen, tmp_path / precision).steps == 1


def test_a_second_run_into_the_folder_is_refused(config, tmp_path):
    short = apply_overrides(config, ["train.epochs=0.5"])
    train(short, tmp_path / "run")
    before = checkpoint_path(tmp_path / "run", "last").read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        train(short, tmp_path / "run")
    assert checkpoint_path(tmp_path / "run", "last").read_bytes() == before
    assert train(short, tmp_path / "run", resume=True).steps == 1


def test_a_resume_with_another_setting_names_it(config, tmp_path):
    train(apply_overrides(config, ["train.epochs=0.5"]), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optim\.lr = 0\.5, it was trained with 0\.01"):
        train(apply_overrides(config, ["train.epochs=0.5", "optim.lr=0.5"]), tmp_path / "run", resume=True)


def test_a_resume_may_change_the_number_of_workers(config, tmp_path):
    train(apply_overrides(config, ["train.epochs=0.5"]), tmp_path / "run")
    assert train(apply_overrides(config, ["train.epochs=0.5", "data.workers=1"]), tmp_path / "run", resume=True)


def test_another_number_of_classes_is_named(config, tmp_path, tiny_folder):
    short = apply_overrides(config, ["train.epochs=0.5"])
    train(short, tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("images", "masks", "train.txt", "val.txt"):
        (other / name).symlink_to(tiny_folder / name)
    names = (tiny_folder / "classes.txt").read_text().splitlines()
    (other / "classes.txt").write_text("\n".join([*names, "6\tmoon\t1 2 3"]) + "\n")
    with pytest.raises(CheckpointError, match="trained for 6 classes, but the data set has 7"):
        train(apply_overrides(short, [f"data.root={other}"]), tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_with_the_images(config, tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in step \d+ \(images labeled_"):
        train(apply_overrides(config, ["optim.lr=1e30", "train.steps_per_epoch=10"]), tmp_path / "run")


def test_the_step_that_broke_is_named_and_nothing_broken_is_saved(config, tmp_path, monkeypatch):
    """Losses are read later than they are computed, but before anything is saved."""
    forward = METHODS["allspark"].forward

    def breaks(self, batch, progress):
        output = forward(self, batch, progress)
        return broken_loss(output) if progress.step == 4 else output

    monkeypatch.setattr(METHODS["allspark"], "forward", breaks)
    config = apply_overrides(
        config, ["train.steps_per_epoch=20", "train.epochs=1", "train.log_every=50", "train.checkpoint_every=3"]
    )
    with pytest.raises(UserError, match=r"the loss is nan in step 5 \(images labeled_"):
        train(config, tmp_path / "run")
    last = load_checkpoint(checkpoint_path(tmp_path / "run", "last"))
    assert last.meta["state"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in last.part("model.").values())


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """The data set with an image that ends in the middle."""
    root = tmp_path / "broken"
    root.mkdir()
    for name in ("masks", "train.txt", "val.txt", "classes.txt"):
        (root / name).symlink_to(tiny_folder / name)
    (root / "images").mkdir()
    for path in (tiny_folder / "images").iterdir():
        (root / "images" / path.name).symlink_to(path)
    victim = root / "images" / "unlabeled_0003.png"
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        read_image(victim)
    return root


def test_a_corrupt_file_in_mid_training_is_named(config, broken, tmp_path):
    with pytest.raises(DataError, match=r"unlabeled_0003\.png"):
        train(apply_overrides(config, [f"data.root={broken}", "data.workers=2"]), tmp_path / "run")


def test_a_corrupt_file_can_be_skipped(config, broken, tmp_path):
    said = Lines()
    skip = apply_overrides(config, [f"data.root={broken}", "data.on_bad_image=skip"])
    assert train(skip, tmp_path / "run", sinks=[said]).steps == 4
    assert any(line.startswith("skipped") and "unlabeled_0003.png" in line for line in said.lines)


def test_a_full_disk_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    written = itertools.count(1)
    save = run_folder.save_checkpoint

    def full(path, tensors, meta):
        if path.name == "last.safetensors" and next(written) >= 2:
            raise OSError(28, "No space left on device", str(path))
        save(path, tensors, meta)

    monkeypatch.setattr(run_folder, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path / "run")
    assert load_checkpoint(checkpoint_path(tmp_path / "run", "last")).meta["state"]["step"] == 1
    monkeypatch.setattr(run_folder, "save_checkpoint", save)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("train.device=cuda", ConfigError, "no GPU"),
        ("train.precision=fp16", ConfigError, "fp16 needs a GPU"),
        ("data.root=/nowhere", DataError, "/nowhere: no such folder"),
        ("data.split=none", DataError, "allspark split"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a GPU")
def test_what_cannot_work_leaves_nothing_behind(config, tmp_path, override, error, words):
    with pytest.raises(error, match=words):
        train(apply_overrides(config, [override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_runs_never_share_a_folder(config, tmp_path):
    out = tmp_path / "run"
    code = (
        "from pathlib import Path\nfrom allspark.config.schema import Config\n"
        "from allspark.engine.run_folder import RunFolder\n"
        f"with RunFolder(Path({str(out)!r})).claimed(Config()): input('mine')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.read(4) == b"mine"
        with pytest.raises(ConfigError, match=r"run: another process is training"):
            train(config, out)
        assert not (out / "checkpoints").exists()
        other.stdin.close()
    assert train(config, tmp_path / "run").steps == 4  # the folder is free again


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"best", "step"}, r"gone; \S+step-00000004.safetensors of step 4 is whole: copy it to last.safetensors"),
        ({"step"}, r"gone; \S+step-00000004.safetensors of step 4 is whole: copy it to last.safetensors"),
        ({"best"}, r"gone; \S+best.safetensors of step 4 is whole: a new run can begin with it"),
        ({"result"}, "gone; no other is there; bring it back"),
        (set(), "gone; no other is there; bring it back"),
    ],
)
def test_a_run_whose_last_checkpoint_is_gone_does_not_start_over(config, tmp_path, left, said):
    config = apply_overrides(config, ["train.keep_every=2", "train.log_every=1"])
    train(config, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.stem.split("-")[0] in {"last", "best", "step", "result"} - left:
            path.unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError, match=said):
        train(config, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume, or choose another"):
        train(config, tmp_path / "run")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_a_run_that_died_before_its_first_checkpoint_just_begins(config, tmp_path):
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    assert train(config, tmp_path / "run").steps == 4


def test_a_run_that_logged_before_its_first_checkpoint_begins_again_when_told_to(config, tmp_path):
    """Its first checkpoint may have been due just now, when it was killed."""
    config = apply_overrides(config, ["train.log_every=1", "train.checkpoint_every=3", "train.steps_per_epoch=8"])
    train(config, tmp_path / "run", sinks=(whole := Lines(),))
    rows = (tmp_path / "run" / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    save_config(config, tmp_path / "killed" / "config.yaml")
    (tmp_path / "killed" / "log.jsonl").write_text("".join(rows[:3]))
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True, sinks=(said := Lines(),))
    assert next(line for line in said.lines if line not in whole.lines).endswith("killed, training begins at step 0")
    assert_same_run(tmp_path / "run", tmp_path / "killed")


def test_a_checkpoint_that_stays_is_there_before_the_run_goes_on_from_it(config, tmp_path, monkeypatch):
    """Killed between its two writes, a run does not pass over the one that stays."""
    config = apply_overrides(config, ["train.keep_every=2", "train.checkpoint_every=1"])
    replace = os.replace

    def dies(source, target):
        if (
            Path(target).name == "last.safetensors"
            and (tmp_path / "run/checkpoints/step-00000002.safetensors").exists()
        ):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert load_checkpoint(checkpoint_path(tmp_path / "run", "last")).meta["state"]["step"] == 1
    train(config, tmp_path / "run", resume=True)
    assert [path.name for path in kept_checkpoints(tmp_path / "run")] == [
        f"step-0000000{n}.safetensors" for n in (2, 4)
    ]


def test_out_of_memory_is_one_line(config, tmp_path, monkeypatch):
    def hungry(self, batch, progress):
        torch.empty(1 << 60)

    monkeypatch.setattr(METHODS["allspark"], "forward", hungry)
    words = r"out of memory in step 1: set model\.activation_checkpointing=true .* smaller data\.crop"
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / "run")


def test_unreadable_validation_images_are_passed_over_when_told_to(config, tmp_path, tiny_folder):
    root = tmp_path / "data"
    shutil.copytree(tiny_folder, root)
    victim = open_source(config.data).val[0].image.relative_to(tiny_folder)
    (root / victim).write_bytes((root / victim).read_bytes()[:300])
    config = apply_overrides(config, [f"data.root={root}", "data.on_bad_image=skip", "train.epochs=1"])
    said = Lines()
    result = train(config, tmp_path / "run", sinks=[said])
    assert result.last is not None and any(str(victim) in line and line.startswith("skipped") for line in said.lines)


def test_a_result_says_what_a_table_needs(config, tmp_path):
    assert read_result(tmp_path / "run") is None
    end = train(config, tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result["best_miou"] == end.best and result["last_miou"] == end.last
    assert result["steps"] == 4 and result["images_seen"] == 4 * (2 + 2) and result["best_step"] in (2, 4)
    assert result["train_seconds"] > 0 and result["peak_memory"] > 50e6 and result["partition"] is None


def test_training_begins_with_the_weights_of_another_run(config, tmp_path):
    supervised = apply_overrides(config, ["method.name=supervised"])
    train(supervised, tmp_path / "first")
    begun = apply_overrides(config, [f"train.begin_with={tmp_path / 'first'}"])
    method = build_method(begun, 6)
    segmenter = method.segmenter
    drawn = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    line, weights = begin_with(method, tmp_path / "first")
    assert weights is None
    theirs = load_checkpoint(checkpoint_path(tmp_path / "first", "last")).part("model.")
    assert "bottleneck" in line
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, theirs.get(name, drawn[name])), name
    assert train(begun, tmp_path / "second").steps == 4
    other = apply_overrides(begun, ["model.encoder_config.hidden_sizes=[8, 16, 16, 32]"])
    with pytest.raises(CheckpointError, match="its encoder is another one"):
        train(other, tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(("batch", "accumulate", "rate"), [(8, 2, 0.01), (16, 1, 0.0025), (None, 3, 0.01)])
def test_the_learning_rate_follows_the_number_of_images_an_update(config, tmp_path, batch, accumulate, rate):
    said = Lines()
    config = apply_overrides(config, [f"optim.lr_batch={batch or ''}", f"optim.accumulate={accumulate}"])
    train(config, tmp_path / "run", sinks=[said])
    assert read_log(tmp_path / "run")[0]["lr"] == pytest.approx(rate)
    lines = [line for line in said.lines if "images an update" in line]
    assert lines == (
        ["note: 4 images an update, optim.lr 0.01 is meant for 16: 0.0025 is used"] if rate != 0.01 else []
    )


def test_a_method_that_needs_two_images_in_a_batch_says_so(config, tmp_path):
    alone = ["data.batch_unlabeled=1", "train.epochs=0.5"]
    said = Lines()
    train(apply_overrides(config, [*choose("fixmatch"), *alone]), tmp_path / "mixed", sinks=[said])
    assert "note: with data.batch_unlabeled=1 fixmatch has no other image to mix with" in "\n".join(said.lines)
    with pytest.raises(ConfigError, match=r"^data\.batch_unlabeled: pc2seg compares .* needs two or more, got 1$"):
        train(apply_overrides(config, [*choose("pc2seg"), *alone]), tmp_path / "compared")


@pytest.mark.parametrize("name", each_method())
def test_ohem_is_the_loss_of_labelled_images_only(config, name):
    changes = ["method.labeled_loss=ohem", "method.ohem_min_kept=5", "method.ohem_threshold=0.1"]
    config = apply_overrides(config, changes)
    source = with_pseudo(open_source(config.data), config.data.pseudo)
    torch.manual_seed(0)
    chosen = apply_overrides(config, choose(name))
    method = build_method(chosen, 6)
    plain = build_method(apply_overrides(chosen, ["method.labeled_loss=cross-entropy"]), 6)
    plain.load_state_dict(method.state_dict())
    outputs, batch = [], stream_of(source, config, method)[0]
    for one in (method, plain):
        torch.manual_seed(1)
        terms = one(batch, Progress(0, 2, 4)).terms
        outputs.append({key: term.mean().detach() for key, term in terms.items()})
    mined = outputs[0].keys() & (plain.counts(batch).keys() - method.counts(batch).keys())
    assert all(outputs[0][key] > outputs[1][key] for key in mined)  # hard pixels only
    assert all(outputs[0][key] == outputs[1][key] for key in outputs[0].keys() - mined)


def test_a_step_whose_loss_is_not_finite_can_be_skipped(config, tmp_path, monkeypatch):
    """Weights, momentum, memory and statistics are as if the step had not been; the schedule goes on."""
    forward = METHODS["allspark"].forward
    states = {}

    def breaks(self, batch, progress):
        states[progress.step] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        output = forward(self, batch, progress)
        if progress.step != 2:
            return output
        output.loss.backward()
        for buffer in self.buffers():  # as activations that are not finite would
            buffer.mul_(float("nan")) if buffer.is_floating_point() else buffer.add_(1)
        return broken_loss(output, float("inf"))

    monkeypatch.setattr(METHODS["allspark"], "forward", breaks)
    said = Lines()
    config = apply_overrides(config, ["train.on_nan=skip", "train.steps_per_epoch=5", "train.epochs=1"])
    result = train(config, tmp_path / "run", sinks=[said])
    assert result.steps == 5
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in states[3].items())
    assert not torch.equal(*(states[i]["segmenter.decoder.classifier.weight"] for i in (3, 4)))
    (line,) = [line for line in said.lines if "skipped" in line]
    assert line.startswith("skipped: step 3, whose loss is not finite (images labeled_")
    rows = [row["step"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert rows == [1, 2, 4, 5]


def test_some_checkpoints_stay_and_are_offered_when_the_last_is_damaged(config, tmp_path):
    config = apply_overrides(config, ["train.keep_every=2", "train.steps_per_epoch=5", "train.epochs=1"])
    train(config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["best.safetensors", "last.safetensors", "step-00000002.safetensors", "step-00000004.safetensors"]
    last, fourth = (tmp_path / "run" / "checkpoints" / name for name in (kept[1], kept[3]))
    whole = last.read_bytes()
    last.write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match=r"last.*truncated.*step-00000004.safetensors of step 4 is whole: copy"):
        train(config, tmp_path / "run", resume=True)
    last.write_bytes(fourth.read_bytes())
    train(config, tmp_path / "run", resume=True)
    again = load_checkpoint(last).tensors
    last.write_bytes(whole)
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_checkpoint(last).tensors.items())
    for path in (last, fourth, fourth.with_name(kept[2])):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"best.safetensors of step 5 is whole: a new run can begin with it"):
        train(config, tmp_path / "run", resume=True)


def test_a_row_is_a_mean_over_the_steps_that_have_a_value(tiny_config, tiny_folder, tmp_path):
    """Unlabelled images join after half of the row: what is said of them is a mean over that half, not over all."""
    changes = [f"data.root={tiny_folder}", "method.name=fixmatch", "method.supervised_epochs=1"]
    rows = {}
    for every in (1, 4):
        config = apply_overrides(tiny_config, [*changes, f"train.log_every={every}"])
        train(config, tmp_path / f"every{every}")
        rows[every] = [row for row in read_log(tmp_path / f"every{every}") if "loss" in row]
    assert ["kept" in row for row in rows[1]] == [False, False, True, True]
    (whole,) = rows[4]
    for name in ("loss", "loss_labeled", "loss_unlabeled", "kept"):
        single = [row[name] for row in rows[1] if name in row]
        assert whole[name] == pytest.approx(sum(single) / len(single)), name


def test_methods_hear_of_validations_and_what_classes_are_called(config, tmp_path, tiny_folder, monkeypatch):
    """Before the checkpoint is written; without validation images each time is the best."""
    heard = []

    def listens(self, progress, best):
        saved = checkpoint_path(tmp_path / "run", "last")
        at = load_checkpoint(saved).meta["state"]["step"] if saved.is_file() else 0
        heard.append((progress.step, progress.epoch, at, best))

    def named(self, names):
        heard.append(tuple(names))

    monkeypatch.setattr(METHODS["allspark"], "after_validation", listens)
    monkeypatch.setattr(METHODS["allspark"], "name_classes", named)
    train(config, tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run") if "miou" in row]
    assert heard[0] == open_source(config.data).classes
    assert heard[1:] == [(2, 1, 1, rows[0]["best"]), (4, 2, 3, rows[1]["best"])] and rows[0]["best"]
    (tmp_path / "run").rename(tmp_path / "first")
    folder = shutil.copytree(tiny_folder, tmp_path / "unscored")
    for path in (folder / "train.txt", folder / "val.txt", *sorted((folder / "masks").iterdir())[1:]):
        path.unlink(missing_ok=True)
    heard.clear()
    train(apply_overrides(config, [f"data.root={folder}"]), tmp_path / "run")
    assert heard[1:] == [(2, 1, 1, True), (4, 2, 3, True)]
