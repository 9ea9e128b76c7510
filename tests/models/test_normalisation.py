"""What an encoder takes of an image follows its weights, is written into the run, and reaches inference."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, SwinBackbone

from allspark.batch import IMAGENET, Normalisation
from allspark.config.files import apply_overrides, load_config
from allspark.config.schema import ModelConfig
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.run import open_run, saved_config
from allspark.engine.train import train
from allspark.errors import CheckpointError, ConfigError
from allspark.models import efficientnet_lite
from allspark.models.encoders import build_encoder, resolve_encoder
from tests.fakes import ENCODERS

HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def folder_of_weights(path, **preprocessor):
    torch.manual_seed(0)
    SwinBackbone(AutoConfig.for_model("swin", **ENCODERS["swin"])).save_pretrained(path)
    if preprocessor:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return ModelConfig(encoder=str(path), pretrained=str(path))


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, HALF),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}, HALF),
        # Images from 0 to 255 right into the normalisation, and none at all after the division by 255
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False}, HALF),
        ({"do_normalize": False}, Normalisation((0.0,) * 3, (1.0,) * 3)),
        ({"size": 224}, IMAGENET),
        ({}, IMAGENET),
    ],
)
def test_it_is_read_beside_the_weights(tmp_path, preprocessor, expected):
    encoder = build_encoder(folder_of_weights(tmp_path / "Gewichte", **preprocessor))
    np.testing.assert_allclose(encoder.normalisation.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(encoder.normalisation.std, expected.std, rtol=1e-12)


def test_the_configuration_overrides_it(tmp_path):
    config = folder_of_weights(tmp_path / "w", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    own = config.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    assert build_encoder(own).normalisation == Normalisation((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("preprocessor", [{"image_mean": [0.5]}, {"image_mean": "grey"}, {"rescale_factor": 0}])
def test_a_file_that_says_nothing_is_one_line(tmp_path, preprocessor):
    config = folder_of_weights(tmp_path / "w", **preprocessor)
    with pytest.raises(
        ConfigError, match=r"no mean and std of three channels .*set model\.mean and model\.std"
    ) as caught:
        build_encoder(config)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_asked_is_one_line(monkeypatch):
    monkeypatch.setattr("allspark.models.pretrained.hub_answers", lambda: False)
    with pytest.raises(CheckpointError, match=r"hub cannot be asked what some/backbone takes .*set model\.mean"):
        resolve_encoder(ModelConfig(encoder="some/backbone"))


def test_lite_has_its_own():
    encoder = build_encoder(ModelConfig(encoder="efficientnet-lite0"), load_weights=False)
    assert encoder.normalisation == efficientnet_lite.NORMALISATION != IMAGENET


def test_a_run_keeps_it_without_the_folder(tiny_config, tiny_folder, tmp_path):
    """Trained with the folder of weights, opened without it: same pixels in, and they are those of training."""
    weights = tmp_path / "w"
    model = folder_of_weights(weights, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    config = tiny_config.model_copy(update={"model": model.model_copy(update={"decoder_channels": 16})})
    config = apply_overrides(config, [f"data.root={tiny_folder}", "train.epochs=1", "method.name=supervised"])
    train(config, tmp_path / "run")
    for path in weights.iterdir():
        path.unlink()
    run = open_run(tmp_path / "run", "last")
    assert (run.config.model.mean, run.config.model.std) == (HALF.mean, HALF.std)
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert train(saved, tmp_path / "run", resume=True).steps == 2
    assert run.segmenter.normalisation == HALF

    seen = []
    run.segmenter.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    black = np.zeros((64, 64, 3), np.uint8)
    run.predictor().predict(black)
    assert seen[0].unique().tolist() == [-1.0]


def test_a_run_from_before_has_that_of_imagenet(tiny_config, tiny_folder, tmp_path):
    config = apply_overrides(tiny_config, [f"data.root={tiny_folder}", "train.epochs=1", "method.name=supervised"])
    train(config, tmp_path / "run")
    path = checkpoint_path(tmp_path / "run", "last")
    checkpoint = load_checkpoint(path)
    for field in ("mean", "std"):
        del checkpoint.meta["config"]["model"][field]
    model = saved_config(checkpoint, path).model
    assert (model.mean, model.std) == (IMAGENET.mean, IMAGENET.std)
