"""EfficientNet-Lite0: its weights are the right ones, its padding is TensorFlow's, and a broken package is named."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from allspark.config.schema import ModelConfig
from allspark.data.image import normalize
from allspark.errors import CheckpointError, ConfigError
from allspark.models import efficientnet_lite as lite
from allspark.models.encoders import build_encoder

DOG, DOGS = 12, range(151, 276)  # of VOC, and ImageNet's 118 breeds with their wild kin


def test_dogs_are_dogs(shared):
    """The published classifier on top of the packaged weights: any mix-up of layers or pixels makes it guess."""
    state = lite.packaged_weights()
    encoder = build_encoder(ModelConfig(encoder="efficientnet-lite0")).eval()
    folder = shared / "data/voc-mini"
    found = []
    for path in sorted((folder / "SegmentationClass").glob("*.png")):
        with Image.open(path) as mask:
            share = (np.asarray(mask) == DOG).mean()
        if share > 0.1:
            found.append(_class_of(folder / f"JPEGImages/{path.stem}.jpg", encoder, state))
    assert len(found) >= 10
    assert sum(one in DOGS for one in found) > 0.75 * len(found)


def _class_of(path, encoder, state):
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    pixels = normalize(rgb, encoder.normalisation, np.empty((3, 224, 224), np.float32))
    assert pixels.min() >= -127 / 128 and pixels.max() <= 1
    with torch.no_grad():
        last = encoder(torch.from_numpy(pixels)[None])[-1]
        norm = [state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(F.conv2d(last, state["_conv_head.weight"]), *norm, eps=1e-3))
        return int(F.linear(x.mean((2, 3)), state["_fc.weight"], state["_fc.bias"]).argmax())


@pytest.mark.parametrize(("size", "kernel", "stride"), [((7, 8), 3, 2), ((5, 1), 5, 2), ((9, 6), 5, 2), ((4, 4), 3, 2)])
def test_same_padding_is_that_of_tensorflow(size, kernel, stride):
    """Against one dot product a pixel: output i sees the inputs from i * stride - floor(missing / 2) on."""
    torch.manual_seed(0)
    convolution = lite._SameConv2d(1, 1, kernel, stride, bias=False).double()
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    out = convolution(image)[0, 0]
    starts = []
    for side in size:
        count = -(-side // stride)
        missing = max(0, (count - 1) * stride + kernel - side)
        starts.append([i * stride - missing // 2 for i in range(count)])
    expected = torch.zeros(len(starts[0]), len(starts[1]), dtype=torch.float64)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            for y in range(kernel):
                for x in range(kernel):
                    if 0 <= top + y < size[0] and 0 <= left + x < size[1]:
                        expected[i, j] += convolution.weight[0, 0, y, x] * image[0, 0, top + y, left + x]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_missing_or_altered_package_is_named(tmp_path, monkeypatch):
    config = ModelConfig(encoder="efficientnet-lite0")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(CheckpointError, match=f"package {lite.PACKAGE}.* is missing; install it again.*none"):
            build_encoder(config)
        build_encoder(config, load_weights=False)  # a checkpoint that follows does not need it
        build_encoder(config.model_copy(update={"pretrained": "none"}))
    package = tmp_path / lite.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, lite.PACKAGE, raising=False)
    with pytest.raises(CheckpointError, match=r"57934424\.pth is missing"):
        build_encoder(config)
    (package / lite._FILE).write_bytes(b"not these weights")
    with pytest.raises(CheckpointError, match=f"was altered: its SHA-256 is [0-9a-f]{{64}}, expected {lite.SHA256}"):
        build_encoder(config)


def test_a_file_of_other_weights_is_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of EfficientNet-Lite0: _conv_stem\.weight is missing"):
        build_encoder(ModelConfig(encoder="efficientnet-lite0", pretrained=str(tmp_path / "other.pth")))


@pytest.mark.parametrize(
    ("field", "value"), [("encoder_config", {"depths": [1]}), ("output_stride", 16), ("activation_checkpointing", True)]
)
def test_what_it_does_not_have_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"model.{field}: .*efficientnet-lite0"):
        build_encoder(ModelConfig(encoder="efficientnet-lite0", **{field: value}))
