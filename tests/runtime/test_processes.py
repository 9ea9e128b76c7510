"""Several processes train what one would: the same losses, weights and memory; and none waits for one that is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from allspark.config.files import apply_overrides, load_recipe, save_config
from allspark.data.sets.synthetic import generate
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import read_log
from allspark.runtime.launch import ProcessesFailed, launch
from tests.conftest import TINY
from tests.fakes import ENCODERS
from tests.forks import Forks
from tests.helpers import choose, make_pseudo_masks

EXACT = ["train.precision=fp64", "eval.precision=fp64", "model.decoder_dropout=0", "model.bottleneck_dropout=0"]
NO_FEATURES = ["method.feature_dropout=0"]
OLD = ["method.confidence=0.3", "method.old_confidence=0.3", "method.history=2"]
SPREAD = ["method.confidence=0.3", "method.correlation_dropout=0"]
V2 = ["method.name=unimatch-v2", "method.feature_dropout=false"]
U2PL = [
    *("method.name=u2pl", "method.cutmix=0", "method.projection_dropout=0", "method.bank_sizes=[60,50]"),
    "method.ranks=[1,4]",
]
DGCL = [
    *("method.name=dgcl", "method.cutmix=0", "method.bank_size=20", "method.bank_new=20", "method.dense=8"),
    *("method.neighbours=[2,8]", "method.contrast_drop=[0,0]", "method.contrast_first=true"),
]
HARD = ["method.ohem_threshold=0.05"]
OWN_BOXES = ["method.adaptive_boxes=false"]
NO_MIX, NO_MAPPING = ["method.cutmix=0"], ["method.mapping_dropout=0"]
TEACHERS = ["method.cutmix=false", "method.noise=0", "method.supervised_epochs=1", "method.ramp_epochs=1"]
BOTTLENECK = ["model.bottleneck=allspark"]
ADAM = ["optim.lr=1e-4", "optim.decay_norms=false"]
FOUR_STEPS = ["train.epochs=4", "train.steps_per_epoch=1", "model.bottleneck_warmup_epochs=2", "train.health_images=2"]
LIMIT = 240  # seconds; all of these need a small part of it


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Eight labelled, eight unlabelled and five validation images; crops are padded, so counts differ by process."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    generate(root, labeled=8, unlabeled=8, val=5, size=(72, 72))
    make_pseudo_masks(root)
    return root


@pytest.fixture(scope="module")
def forks():
    server = Forks()
    yield server
    server.close()


def with_defaults(*changes):
    return [*TINY, *EXACT, *FOUR_STEPS, "views.scale=[0.5,2.0]", "data.crop=64", *changes]


def command(scenes, out, processes=1, *changes):
    changes = with_defaults(*changes)
    options = [part for change in changes for part in ("--set", change)]
    arguments = ["train", "--recipe", "folder", "--data", scenes, "--out", out, *options]
    return [sys.executable, "-m", "allspark.cli.app", *map(str, arguments), "--processes", str(processes)]


def run(arguments, **kwargs):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def batches(size):
    return [f"data.batch_labeled={size}", f"data.batch_unlabeled={size}"]


def losses(out):
    return [row["loss"] for row in read_log(out) if "loss" in row]


def assert_same_training(left, right, tolerance=1e-9):
    assert losses(left) == pytest.approx(losses(right), rel=tolerance) and len(losses(left)) == 4
    scores = [[row["iou"] for row in read_log(out) if "iou" in row] for out in (left, right)]
    assert scores[0] == scores[1] and len(scores[0]) == 4
    a, b = (load_checkpoint(checkpoint_path(out, "last")).tensors for out in (left, right))
    for name in a:
        if not name.startswith(("rng.", "health.")):
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def network(name):
    sizes = [f"model.encoder_config.{key}={value}" for key, value in ENCODERS[name].items()]
    more = ["model.decoder=deeplabv3plus", "model.output_stride=16"] if name == "resnet" else []
    return [f"model.encoder={name}", "model.encoder_config={}", *sizes, *more]


# One number of processes or another: the same; the first of them with every run of the tests.
SAME = {
    "allspark": [],
    "pseudo-label on ResNet": ["method.name=pseudo-label", *network("resnet")],
    "Swin": network("swin"),
    "no memory": ["model.bottleneck_memory=false"],
    "accumulated": ["model.bottleneck_grouping=off", "optim.accumulate=2"],
    "clipped": ["method.name=supervised", "optim.clip_norm=0.1"],
    # fewer pixels than are asked for in one process, but not in both
    "ohem": ["method.labeled_loss=ohem", "method.ohem_min_kept=9000", *HARD],
    "ohem of an auxiliary head": [
        *("model.auxiliary_weight=0.4", "method.labeled_loss=ohem", "method.ohem_min_kept=900", *HARD),
    ],
    "unimatch": ["method.name=unimatch", "method.confidence=0.3", *NO_FEATURES],
    "unimatch with the bottleneck": ["method.name=unimatch", *NO_FEATURES, *BOTTLENECK],
    "unimatch by percentile": ["method.name=unimatch", "method.filter=percentile", *NO_FEATURES],
    "unimatch by class": ["method.name=unimatch", "method.filter=class-wise", *NO_FEATURES],
    # pairs are those of a process: without CutMix there are none
    "unimatch-v2": [*V2, "method.confidence=0.3", "method.cutmix=0"],
    "cutmix-seg": ["method.name=cutmix-seg", "method.confidence=0.3"],
    "augseg": ["method.name=augseg", "method.confidence=0.3", *BOTTLENECK],
    "cps with AdamW": ["method.name=cps", "optim.name=adamw", *ADAM],
    "plain cps": ["method.name=cps", "method.cutmix=false"],
    "st++": ["method.name=st++"],
    # a box comes out of the images of a process: without adaptive ones, out of the own partner
    "ael": ["method.name=ael", "method.confidence=0.3", *OWN_BOXES],
    "fpl": ["method.name=fpl"],
    "fpl on ael": ["method.name=fpl-ael", *OWN_BOXES],
    "logicdiag": [*choose("logicdiag"), "method.cutmix=0"],
    # the next image is one of the process: without CutMix there is none; banks that are filled and overwritten
    "u2pl": U2PL,
    "dgcl": DGCL,
    "pc2seg": ["method.name=pc2seg"],
    # neighbours are those of a process
    "mkd": ["method.name=mkd", "method.cutmix=false"],
    "ccvc": ["method.name=ccvc", "method.confidence=0.3", *NO_MIX, *NO_MAPPING],
    "ps-mt": ["method.name=ps-mt", "method.confidence=0.3", *TEACHERS],
    "gta-seg": ["method.name=gta-seg", *NO_MIX],
    "gta-seg, tied": ["method.name=gta-seg", *NO_MIX, "method.tie_classifier=true"],
    "prevmatch": ["method.name=prevmatch", *NO_FEATURES, *OLD],
    "corrmatch": ["method.name=corrmatch", *NO_FEATURES, *SPREAD],
    "semivl": ["method.name=semivl", *NO_FEATURES, "method.trust=share", "method.confidence=0.3"],
    "pseudoseg": ["method.name=pseudoseg", "method.cutout=20"],
    "semicvt": ["method.name=semicvt", "method.cutmix=0", "method.drop_path=0"],
    "averaged": ["method.name=supervised", "method.ema_decay=0.5", "eval.compare=true"],
}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(x, id=name, marks=() if name == "allspark" else pytest.mark.slow) for name, x in SAME.items()],
)
def test_two_processes_train_what_one_does(scenes, tmp_path, forks, changes):
    """The same global batch, in float64 and without dropout."""
    for name, processes in (("one", 1), ("two", 2)):
        size = batches(4 // processes)
        config = apply_overrides(load_recipe("folder"), with_defaults(*size, *changes, f"data.root={scenes}"))
        forks.train(config, tmp_path / name, processes)
    assert_same_training(tmp_path / "one", tmp_path / "two")


def test_the_command_starts_two_processes_that_speak_as_one(scenes, tmp_path):
    done = run(command(scenes, tmp_path / "two", 2, *batches(2)))
    assert "2 processes" in done.stderr and done.stdout.count("mIoU") == 2  # best and last, told once
    assert "Warning" not in done.stderr


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
    # With --multi_gpu also on CPUs, where `accelerate launch` would start one process otherwise.
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(30000 + os.getpid() % 9000)),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_other_launchers_start_the_same(scenes, tmp_path, launcher):
    run(command(scenes, tmp_path / "own", 2, *batches(2)))
    python, _, module, *arguments = command(scenes, tmp_path / "other", 1, *batches(2))
    done = run([python, *launcher, "-m", module, *arguments])
    assert_same_training(tmp_path / "own", tmp_path / "other", tolerance=0)
    assert done.stdout.count("mIoU") == 2


def ranks(tmp_path, script, processes):
    """Run a script in processes that each leave something behind."""
    (tmp_path / "script.py").write_text(f"from pathlib import Path\nout = Path({str(tmp_path)!r})\n{script}")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    assert [process.wait(LIMIT) for process in started] == [0] * processes
    return [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(processes)]


TRAINING = """
import torch
from allspark.engine import train as module
from allspark.config.files import load_config
from allspark.runtime.collectives import rank

class Learner(module.Learner):
    def tensors(self):
        torch.save(self.method.state_dict(), out / f"rank{rank()}.pt")
        return super().tensors()
module.Learner = Learner
module.train(load_config(out / "config.yaml"), out / f"by {PROCESSES}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_hold_the_same_network_and_memory_bit_by_bit(scenes, tmp_path, processes):
    """After twenty steps in float32, with dropout."""
    config = apply_overrides(load_recipe("folder"), [*TINY, "train.epochs=20", "train.steps_per_epoch=1"])
    changes = [f"data.root={scenes}", "model.bottleneck_warmup_epochs=3", "train.eval_every=20", "train.log_every=20"]
    save_config(apply_overrides(config, changes), tmp_path / "config.yaml")
    state, *others = ranks(tmp_path, TRAINING.replace("PROCESSES", str(processes)), processes)
    for other in others:
        assert other.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.items())
    assert int(state["segmenter.bottleneck.memory.writes"]) == 20


EVALUATION = """
import torch
from allspark.data.sets import open_source
from allspark.engine.run import open_run
from allspark.inference.evaluate import evaluate
from allspark.runtime.devices import start_processes
from allspark.inference.predictor import Predictor
from allspark.inference.metrics import ConfusionMatrix

matrices, scores = [], ConfusionMatrix.scores
def kept(self):
    matrices.append(self.matrix.clone())
    return scores(self)
ConfusionMatrix.scores = kept
run = open_run(out / "run")
number = start_processes(run.config.train, 1).process_index
source = open_source(run.config.data)
evaluate(Predictor(run.segmenter, run.config.eval), source.val, source, workers=0, max_pixels=10**6)
torch.save(matrices, out / f"rank{number}.pt")
"""


@pytest.mark.slow
def test_one_two_and_three_processes_count_each_pixel_once(scenes, tmp_path):
    """Five images are no multiple of two or three."""
    run(command(scenes, tmp_path / "run", 1))
    (first,) = ranks(tmp_path, EVALUATION, 1)[0]
    assert int(first.sum()) == 5 * 72 * 72
    for processes in (2, 3):
        for matrices in ranks(tmp_path, EVALUATION, processes):
            assert torch.equal(torch.stack(matrices), first[None])


@pytest.mark.slow
def test_a_bad_image_in_one_process_ends_all_with_its_name(scenes, tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for path in scenes.rglob("*"):
        if path.is_file() and path.name != "unlabeled_0003.png":
            (root / path.relative_to(scenes)).parent.mkdir(exist_ok=True)
            (root / path.relative_to(scenes)).symlink_to(path)
    whole = (scenes / "images" / "unlabeled_0003.png").read_bytes()
    (root / "images" / "unlabeled_0003.png").write_bytes(whole[: len(whole) // 2])
    arguments = command(root, tmp_path / "out", 2, "train.epochs=50")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2
    assert "unlabeled_0003.png" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert sum("error" in line for line in done.stderr.splitlines()) == 1
    load_checkpoint(checkpoint_path(tmp_path / "out", "last"))


@pytest.mark.slow
def test_what_each_process_passes_over_is_said(scenes, tmp_path):
    root = Path(shutil.copytree(scenes, tmp_path / "data"))
    broken = sorted((root / "images").glob("unlabeled_*"))[:6]
    for path in broken:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    done = run(command(root, tmp_path / "out", 2, "train.epochs=10", "data.on_bad_image=skip", "data.workers=0"))
    said = "\n".join(line for line in done.stderr.splitlines() if "skipped: " in line)
    assert [path.name for path in broken if path.name not in said] == []


def interfere(folder, rank, step, code):
    """Environment of processes of which one runs this code in a training step."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if os.environ.get('RANK', '0') == '{rank}':\n"
        "    import allspark.methods.allspark as module\n"
        "    forward = module.AllSpark.forward\n"
        "    def failing(self, batch, progress):\n"
        f"        if progress.step == {step}:\n            {code}\n"
        "        return forward(self, batch, progress)\n"
        "    module.AllSpark.forward = failing\n"
    )
    return os.environ | {"PYTHONPATH": str(folder)}


FAULTS = {
    "out of memory": ("raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes')",
                      "process 1: error: out of memory in step 3"),
    "killed": ("os.kill(os.getpid(), 9)", "error: process 1 was killed (out of memory?); go on with --resume"),
    "a bug": ("raise KeyError('a bug')", "process 1: KeyError: 'a bug'"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_falls_out_of_step_ends_all(scenes, tmp_path, fault):
    """One process fails in the middle of a step, where the other waits for its gradients."""
    code, words = FAULTS[fault]
    environment = interfere(tmp_path, 1, 2, code)
    arguments = command(scenes, tmp_path / "out", 2, "train.checkpoint_every=1")
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=LIMIT)
    assert done.returncode not in (0, None)
    assert words in done.stderr.splitlines()[-1], done.stderr
    assert load_checkpoint(checkpoint_path(tmp_path / "out", "last")).meta["state"]["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_stops_all_and_they_go_on_as_if_nothing_had_been(scenes, tmp_path, number, status):
    changes = ["train.epochs=20", "train.eval_every=20", "model.decoder_dropout=0.1", "data.workers=1"]
    run(command(scenes, tmp_path / "whole", 2, *changes))
    started = subprocess.Popen(command(scenes, tmp_path / "parts", 2, *changes), stderr=subprocess.PIPE, text=True)
    while not losses(tmp_path / "parts"):
        time.sleep(0.02)
    started.send_signal(number)
    _, said = started.communicate(timeout=LIMIT)
    assert started.returncode == status
    assert f"--out '{tmp_path}/parts'" in said or f"--out {tmp_path}/parts" in said
    last = said.splitlines()[-1]
    assert last.startswith("stopped after step") and last.endswith("--resume --processes 2")
    run([sys.executable, "-m", "allspark.cli.app", *last.split("go on with: allspark ")[1].split()])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    a, b = (load_checkpoint(checkpoint_path(tmp_path / out, "last")).tensors for out in ("whole", "parts"))
    assert a.keys() == b.keys() and {"rng.cpu", "rng.cpu.1"} <= a.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "now", "said"), [(1, 2, "data.batch_labeled 4 -> 2"), (2, 1, "optim.accumulate 1 -> 2")]
)
def test_a_run_goes_on_with_another_number_of_processes(scenes, tmp_path, then, now, said):
    """Updates keep their images, so the schedule stays as it is.

    From one process to two, not even the losses change.
    """
    run(command(scenes, tmp_path / "whole", 1, *batches(4)))
    stopping = interfere(tmp_path, 0, 1, "os.kill(os.getpid(), 15)")
    arguments = command(scenes, tmp_path / "parts", then, *batches(4 // then))
    done = subprocess.run(arguments, capture_output=True, text=True, env=stopping)
    assert done.returncode == 143 and "stopped after step 2 of 4" in done.stderr.splitlines()[-1]
    assert load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).meta["processes"] == then
    resume = [sys.executable, "-m", "allspark.cli.app", "train", "--out", str(tmp_path / "parts"), "--resume"]
    done = subprocess.run([*resume, "--processes", "3"], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot have updates of the same size" in done.stderr.splitlines()[-1]
    dies = interfere(tmp_path, 0, 2, "os.kill(os.getpid(), 9)")  # before it can save: nothing is half new
    assert subprocess.run([*resume, "--processes", str(now)], capture_output=True, env=dies).returncode != 0
    done = run([*resume, "--processes", str(now)])
    assert load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).meta["processes"] == then
    assert said in done.stderr and len(losses(tmp_path / "parts")) == 4
    if now == 2:
        assert_same_training(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_what_one_process_says_is_shown_once(capfd, tmp_path):
    """Wrong input is the same in all processes."""
    with pytest.raises(ProcessesFailed) as caught:
        launch(["train", "--recipe", "folder", "--data", str(tmp_path / "none"), "--out", "x"], 2)
    assert caught.value.exit_code == 2
    assert capfd.readouterr().err.strip().splitlines() == [
        f"error: {tmp_path / 'none'}: no such folder (data.root, --data)"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["segformer", "swin", "dinov2"])
def test_divided_weights_train_as_whole_ones(scenes, tmp_path, forks, encoder):
    """FSDP against one process; then a run that was divided goes on undivided, and the other way round."""
    changes = [*network(encoder), "train.keep_every=2", "optim.clip_norm=1", f"data.root={scenes}"]
    one = apply_overrides(load_recipe("folder"), with_defaults(*batches(4), *changes))
    divided = apply_overrides(load_recipe("folder"), with_defaults(*batches(2), *changes, "train.shard=true"))
    forks.train(one, tmp_path / "one")
    forks.train(divided, tmp_path / "divided", 2)
    # transformers interpolates DINOv2's position embeddings in float32.
    tolerance = 1e-6 if encoder == "dinov2" else 1e-9
    assert_same_training(tmp_path / "one", tmp_path / "divided", tolerance)
    checkpoints = tmp_path / "divided" / "checkpoints"
    for shard in ("false", "true"):
        (checkpoints / "last.safetensors").write_bytes((checkpoints / "step-00000002.safetensors").read_bytes())
        forks.train(apply_overrides(divided, [f"train.shard={shard}"]), tmp_path / "divided", 2, resume=True)
        assert_same_training(tmp_path / "one", tmp_path / "divided", tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mkd", "ccvc", "ps-mt", "gta-seg, tied", "semicvt"])
def test_several_networks_train_divided(scenes, tmp_path, forks, name):
    """Weights of their classifiers are asked for whole, features follow, and some networks rest in some updates."""
    for shard in ("false", "true"):
        changes = [*batches(2), *SAME[name], f"data.root={scenes}", f"train.shard={shard}"]
        forks.train(apply_overrides(load_recipe("folder"), with_defaults(*changes)), tmp_path / shard, 2)
    assert_same_training(tmp_path / "false", tmp_path / "true")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ["method.name=fixmatch", "method.confidence=0.3", *BOTTLENECK],
        *(SAME[name] for name in ("prevmatch", "corrmatch", "pseudoseg")),
    ],
    ids=["teacher", "prevmatch", "corrmatch", "pseudoseg"],
)
def test_what_is_beside_a_network_follows_divided_weights(scenes, tmp_path, forks, method):
    """Two processes with whole weights and with divided ones, AdamW; a teacher is what is scored."""
    method = [*method, "optim.name=adamw", *ADAM, f"data.root={scenes}"]
    for shard in ("false", "true"):
        changes = with_defaults(*batches(2), *method, f"train.shard={shard}")
        forks.train(apply_overrides(load_recipe("folder"), changes), tmp_path / shard, 2)
    assert_same_training(tmp_path / "false", tmp_path / "true", tolerance=1e-6)
