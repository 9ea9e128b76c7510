"""What several tests of runs need: sinks that listen and interrupt, and comparisons of whole runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from allspark.batch import IGNORE, IMAGENET, LabeledBatch, StepOutput, TrainBatch, UnlabeledBatch, Views
from allspark.data.stream import TrainStream, train_batches
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import Sink, read_log
from allspark.kernels.logits import Logits
from allspark.methods import METHODS


class Lines(Sink):
    """Keeps what the user would read."""

    def __init__(self):
        self.lines: list[str] = []

    def note(self, line):
        self.lines.append(line)


class StopAfter(Sink):
    """Interrupts a run once, after some of its steps, as Ctrl-C does; or does something else then."""

    def __init__(self, steps: int, act: Callable[[], object] = lambda: signal.raise_signal(signal.SIGINT)):
        self.steps = steps
        self.act = act

    def advance(self, step):
        self.steps -= 1
        if self.steps == 0:
            self.act()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_log(run) if "loss" in row]


def assert_same_run(left: Path, right: Path) -> None:
    """Two runs that agree in every bit: losses, scores, weights, the optimiser's and the method's state."""
    assert losses(left) == losses(right) != []
    assert [r["iou"] for r in read_log(left) if "iou" in r] == [r["iou"] for r in read_log(right) if "iou" in r]
    a, b = (load_checkpoint(checkpoint_path(run, "last")) for run in (left, right))
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    for key in ("step", "best", "last"):
        assert a.meta["state"][key] == b.meta["state"][key]


def link_to(folder: Path, target: Path) -> Path:
    """A data set whose lists may be changed: links to the pictures, copies of the rest."""
    target.mkdir()
    for path in folder.iterdir():
        if path.is_dir():
            (target / path.name).symlink_to(path)
        else:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def make_pseudo_masks(root: Path) -> None:
    """Give the images of a ``folder`` without masks some pseudo masks, listed in ROOT/pseudo.txt (data.pseudo)."""
    (root / "pseudo_masks").mkdir()
    lines = []
    for path in sorted((root / "images").iterdir()):
        if not (root / "masks" / f"{path.stem}.png").is_file():
            with Image.open(path) as image:
                stripes = np.arange(image.width * image.height).reshape(image.height, image.width) // 7 % 5
            Image.fromarray(stripes.astype(np.uint8)).save(root / "pseudo_masks" / f"{path.stem}.png")
            lines.append(f"images/{path.name}\tpseudo_masks/{path.stem}.png\n")
    (root / "pseudo.txt").write_text("".join(lines))


CORE = ("supervised", "allspark", "fixmatch", "cps", "u2pl", "gta-seg")
"""One method of each kind; what all methods promise is tested of these in every run of the tests."""


def each_method(*without: str) -> list[object]:
    """All methods, as parameters of a test; those that are not in CORE are slow."""
    names = [name for name in METHODS if name not in without]
    return [pytest.param(name, id=name, marks=() if name in CORE else pytest.mark.slow) for name in names]


_NEEDED = {
    "logicdiag": ['method.hierarchy={"thing":[ball,crate,tent,ring]}'],
    "u2pl": ["method.bank_sizes=[200,100]"],  # as published they are slow to save
    "dgcl": ["method.bank_size=100", "method.bank_new=50", "method.dense=20"],
}


def choose(name: str) -> list[str]:
    """Overrides that choose a method, with what it cannot do without on generated scenes, and with small banks."""
    return [f"method.name={name}", *_NEEDED.get(name, [])]


class LogitsOf(nn.Module):
    """Lets a plain network (images to logits of every pixel) be predicted with, as a Segmenter is."""

    normalisation = IMAGENET

    def logits(self, image):
        full = self(image)
        return pixels(full)


def pixels(logits):
    """Logits that have the image's size already."""
    size = (logits.shape[2], logits.shape[3])
    return Logits(logits, size, size)


SUPERVISED, BOTH = Views(unlabeled=False), Views()
"""What a method that learns from labels alone asks for, and what the simplest semi-supervised one does."""


def stream_of(source, config, views=BOTH, rank=0, world=1):
    return TrainStream(source, config.data, config.views, views, seed=config.seed, rank=rank, world=world)


def batches_of(source, config, start=0, stop=4, **options):
    """The micro-batches of some steps, read as training does."""
    parts = range(start * config.optim.accumulate, stop * config.optim.accumulate)
    return train_batches(stream_of(source, config, **options), parts, workers=config.data.workers)


def step_of(method, batch, progress):
    """The terms of a step, of all its phases together where it has several."""
    phases = [(phase,) if method.phases > 1 else () for phase in method.phases_of(progress)]
    outputs = [method(batch, progress, *phase) for phase in phases]
    found = [{}, {}, {}]
    for output in outputs:
        for known, more in zip(found, (output.terms, output.metrics, output.class_pixels), strict=True):
            assert not known.keys() & more.keys()
            known |= more
    return StepOutput(*found)


def follow_step(method, progress):
    """What a method does after the weight updates of a step."""
    for phase in method.phases_of(progress):
        method.after_phase(phase, progress)
    method.after_step(progress)


def batch_of(views, labeled=2, unlabeled=2, size=(64, 96), classes=5, valid=None, dtype=torch.float32):
    """A random micro-batch with what a method asks for."""

    def images(count):
        return torch.randn(count, 3, *size, dtype=dtype)

    def crops():
        draws = max(views.strong, 1)
        boxes = None
        if views.boxes is not None:
            rngs = [np.random.default_rng(int(torch.randint(1 << 30, ()))) for _ in range(draws * unlabeled)]
            boxes = torch.from_numpy(np.stack([views.boxes.draw(size, rng) for rng in rngs]))
            boxes = boxes.view(draws, unlabeled, -1, 4)
        strong = torch.stack([images(unlabeled) for _ in range(views.strong)]) if views.strong else None
        chance = torch.rand(unlabeled, dtype=dtype) if views.chance else None
        return UnlabeledBatch(images(unlabeled), valid, (), strong, boxes, chance)

    def made():
        mask = torch.randint(0, classes, (unlabeled, *size))
        return LabeledBatch(images(unlabeled), mask if valid is None else mask.where(valid, IGNORE))

    mask = torch.randint(0, classes, (labeled, *size))
    return TrainBatch(
        LabeledBatch(images(labeled), mask) if views.labeled is not None else None,
        crops() if views.unlabeled else None,
        partner=crops() if views.partner else None,
        pseudo=made() if views.pseudo else None,
    )
