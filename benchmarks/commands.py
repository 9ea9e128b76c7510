"""Whole commands, from start to end."""

from __future__ import annotations

import sys

from allspark.config.files import apply_overrides, load_recipe
from allspark.data.sets.synthetic import generate
from allspark.engine.train import train
from benchmarks.cases import Case
from benchmarks.measure import Command, Work, temporary_folder


def cases() -> list[Case]:
    """Help, and the mask of one image."""
    return [
        Case("start", "allspark --help", {"product": _help}, repeats=3),
        Case("start", "allspark predict, MiT-B0, one image of 500 x 375", {"product": _predict}, repeats=3),
    ]


def _help(device: str) -> Work:
    return _command("--help")


def _predict(device: str) -> Work:
    folder = temporary_folder()
    generate(folder / "data", labeled=1, unlabeled=1, val=1, size=(375, 500))
    changes = [f"data.root={folder / 'data'}", "model.encoder=mit-b0", "model.pretrained=none", "train.device=cpu"]
    short = ["train.epochs=1", "train.steps_per_epoch=1", "data.crop=65", "data.workers=0", "train.health_images=0"]
    single = ["data.batch_labeled=1", "data.batch_unlabeled=1"]
    train(apply_overrides(load_recipe("folder"), [*changes, *short, *single]), folder / "run")
    image = next((folder / "data" / "images").iterdir())
    return _command("predict", str(folder / "run"), str(image), "--out", str(folder / "masks"))


def _command(*arguments: str) -> Work:
    return Command([sys.executable, "-m", "allspark.cli.app", *arguments])
