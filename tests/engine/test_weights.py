"""Weights that a run begins with: their licence is said and kept; an encoder that is frozen stays as it began."""

import contextlib
import json
import shutil

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, SegformerConfig, SegformerModel

from allspark.config.files import apply_overrides, load_config
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.runtime.signals import Interrupted
from tests.fakes import ENCODERS
from tests.helpers import Lines, StopAfter, assert_same_run


@pytest.fixture
def config(tiny_config, tiny_folder):
    return apply_overrides(tiny_config, [f"data.root={tiny_folder}", "method.name=supervised", "train.epochs=1"])


def noted(config, out, **kwargs):
    lines = Lines()
    with contextlib.suppress(Interrupted):
        train(config, out, sinks=[lines, *kwargs.pop("sinks", [])], **kwargs)
    return "\n".join(lines.lines)


def weights(run):
    kept = load_checkpoint(checkpoint_path(run, "last")).meta["state"]["weights"]
    result = run / "result.json"
    assert not result.is_file() or json.loads(result.read_text())["weights"] == kept
    return kept


def test_a_licence_is_said_before_training_and_kept(config, tmp_path):
    folder = tmp_path / "weights"
    SegformerModel(SegformerConfig(**config.model.encoder_config)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: my-licence\n---\n")
    loaded = apply_overrides(config, [f"model.pretrained={folder}"])
    record = {"source": str(folder), "licence": "my-licence"}
    said = noted(loaded, tmp_path / "one", sinks=[StopAfter(1)])
    assert f"note: the encoder begins with weights of {folder}, licence my-licence" in said
    assert said.index("encoder begins with") < said.index("writing to") and weights(tmp_path / "one") == record
    shutil.rmtree(folder)
    assert "encoder begins with" not in noted(
        load_config(tmp_path / "one" / "config.yaml"), tmp_path / "one", resume=True
    )
    assert weights(tmp_path / "one") == record and (tmp_path / "one" / "result.json").is_file()

    after = apply_overrides(config, [f"train.begin_with={tmp_path / 'one'}"])
    assert "licence my-licence" in noted(after, tmp_path / "two")
    assert weights(tmp_path / "two") == record

    assert "encoder begins with" not in noted(config, tmp_path / "random")
    assert weights(tmp_path / "random") is None


def test_a_stem_that_is_new_is_said_to_be(config, tmp_path):
    sizes = ENCODERS["resnet"]
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path / "weights")
    network = ["model.encoder=resnet", "model.encoder_config={}", f"model.pretrained={tmp_path / 'weights'}"]
    network += [f"model.encoder_config.{name}={value}" for name, value in sizes.items()]
    for number, (changes, words) in enumerate(
        {
            ("model.deep_stem=true",): "note: model.deep_stem: its three convolutions are new",
            ("model.deep_stem=true", "model.freeze_encoder=true"): "leaves the stem of model.deep_stem at its random",
        }.items()
    ):
        assert words in noted(apply_overrides(config, [*network, *changes]), tmp_path / f"{number}")
    assert "deep_stem" not in noted(apply_overrides(config, network), tmp_path / "plain", sinks=[StopAfter(1)])


def test_a_frozen_encoder_stays_as_it_began(config, tmp_path):
    sizes = ENCODERS["resnet"].items()
    network = ["model.encoder=resnet", "model.encoder_config={}", *(f"model.encoder_config.{k}={v}" for k, v in sizes)]
    frozen = apply_overrides(config, [*network, "method.name=unimatch-v2", "model.freeze_encoder=true"])
    assert "random weights" in noted(frozen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(frozen, tmp_path / "parts", sinks=[StopAfter(1)])
    early = load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).tensors
    train(frozen, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")

    late = load_checkpoint(checkpoint_path(tmp_path / "parts", "last")).tensors
    student = {name: x for name, x in late.items() if name.startswith("method.segmenter.")}
    for name, tensor in student.items():
        if ".encoder." in name:
            assert torch.equal(tensor, early[name]), name
            assert torch.equal(tensor, late[name.replace("method.segmenter.", "model.")]), name  # the teacher's
            assert not name.endswith("num_batches_tracked") or tensor == 0
    classifier = "method.segmenter.decoder.classifier.weight"
    assert not torch.equal(late[classifier], early[classifier])
    optimised = [name for name in late if name.startswith("optim.")]
    assert optimised and not any(".encoder." in name for name in optimised)
    rates = [row["lr"] for row in read_log(tmp_path / "whole") if "lr" in row]
    assert rates[0] == config.optim.lr
