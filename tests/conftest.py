"""Fixtures for all tests: one thread a process, a tiny data set, a tiny network, the folder of real images."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side

import pytest
import torch

from allspark.config.files import apply_overrides
from allspark.config.schema import Config

REPOSITORY = Path(__file__).parents[1]

TINY = [
    "method.name=allspark",
    "data.crop=[64, 64]",
    "data.batch_labeled=2",
    "data.batch_unlabeled=2",
    "data.workers=0",
    "data.pseudo=pseudo.txt",
    "model.encoder=segformer",
    "model.encoder_config.hidden_sizes=[8, 16, 16, 24]",
    "model.encoder_config.depths=[1, 1, 1, 1]",
    "model.encoder_config.num_attention_heads=[1, 1, 2, 2]",
    "model.pretrained=none",
    "model.decoder_channels=16",
    "model.drop_path=0",
    "model.bottleneck_warmup_epochs=1",
    "optim.lr=0.01",
    "train.epochs=2",
    "train.steps_per_epoch=2",
    "train.device=cpu",
    "train.log_every=1",
]
"""Overrides that make any recipe small enough for a test on one core."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and reference arrays: ALLSPARK_SHARED, else ``shared`` beside the repository."""
    folder = Path(os.environ.get("ALLSPARK_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"left out: no folder {folder} with real images and reference arrays (set ALLSPARK_SHARED)")
    return folder


@pytest.fixture
def tiny_config() -> Config:
    """A small network from scratch on 64 px crops, four steps, on the CPU."""
    return apply_overrides(Config(), TINY)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set in the ``folder`` layout, to be read only: 4 labelled, 6 unlabelled, 3 validation images."""
    from allspark.data.sets.synthetic import generate
    from tests.helpers import make_pseudo_masks

    root = tmp_path_factory.mktemp("tiny") / "scenes"
    generate(root, labeled=4, unlabeled=6, val=3, size=(64, 80), seed=0)
    make_pseudo_masks(root)
    return root
