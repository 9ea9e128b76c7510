"""ResNets as the other methods use them: multi-grid, a deep stem, a wider low level of DeepLabV3+."""

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from allspark.config.schema import ModelConfig
from allspark.errors import ConfigError
from allspark.models.encoders import build_encoder
from allspark.models.segmenter import build_segmenter
from tests.fakes import tiny
from tests.models.test_encoders import RESNETS


def resnet(kind="bottleneck", **changes):
    return ModelConfig(encoder="resnet", encoder_config=RESNETS[kind], pretrained="none", **changes)


def reaches(encoder, stage):
    """Dilations of the 3x3 convolutions of each block of a stage."""
    blocks = encoder.body.encoder.stages[stage].layers
    return [
        [m.dilation[0] for m in b.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)] for b in blocks
    ]


@pytest.mark.parametrize(("stride", "rate"), [(16, 2), (8, 4)])
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_multi_grid_looks_once_twice_and_four_times_as_far(kind, stride, rate):
    torch.manual_seed(0)
    plain = build_encoder(resnet(kind, output_stride=stride))
    grid = build_encoder(resnet(kind, output_stride=stride, multi_grid=True))
    each = len(reaches(plain, -1)[0])
    assert reaches(grid, -1) == [[rate] * each, [2 * rate] * each, [4 * rate] * each]
    assert [reaches(grid, i) for i in range(3)] == [reaches(plain, i) for i in range(3)]
    assert grid.strides == plain.strides and grid.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(1, 3, 65, 97)
    assert [x.shape for x in grid.eval()(image)] == [x.shape for x in plain.eval()(image)]


def test_the_deep_stem_is_three_convolutions_and_the_rest_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    saved = ResNetForImageClassification(ResNetConfig(**RESNETS["bottleneck"]))
    saved.save_pretrained(tmp_path)
    state = saved.resnet.state_dict()
    config = resnet(deep_stem=True, output_stride=16).model_copy(update={"pretrained": str(tmp_path)})
    encoder = build_encoder(config).eval()
    found = encoder.body.state_dict()
    loaded = {name for name in found if not name.startswith("embedder.")}
    assert loaded == {name for name in state if not name.startswith("embedder.")}
    assert all(torch.equal(found[name], state[name]) for name in loaded)
    stem = [m for m in encoder.body.embedder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size, m.stride) for m in stem] == [
        (3, 2, (3, 3), (2, 2)),
        (2, 2, (3, 3), (1, 1)),
        (2, 4, (3, 3), (1, 1)),
    ]
    plain = build_encoder(resnet(output_stride=16)).eval()
    image = torch.randn(1, 3, 65, 98)
    assert encoder.strides == plain.strides == (4, 8, 16, 16)
    assert [x.shape for x in encoder(image)] == [x.shape for x in plain(image)]


def test_the_published_deep_stem():
    """64, 64 and 128 channels, as TorchSemiSeg's and U2PL's ResNet-101 begins."""
    config = ModelConfig(
        encoder="resnet-101", encoder_config={"embedding_size": 128}, pretrained="none", deep_stem=True
    )
    with torch.device("meta"):
        encoder = build_encoder(config)
    stem = [m for m in encoder.body.embedder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in stem] == [64, 64, 128] and encoder.channels == (256, 512, 1024, 2048)


def test_the_low_level_of_deeplab_is_as_wide_as_asked_for():
    widths = {}
    for asked in ({}, {"low_level_channels": 256}):
        decoder = build_segmenter(
            tiny("resnet", decoder="deeplabv3plus", decoder_channels=8, **asked), 3, (64, 64)
        ).decoder
        widths[decoder.low[0].out_channels] = decoder.fuse[0][0].in_channels
    assert widths == {48: 8 + 48, 256: 8 + 256}


@pytest.mark.parametrize(
    ("encoder", "changes", "words"),
    [
        (
            "mit-b0",
            {"multi_grid": True, "output_stride": None},
            r"model\.multi_grid: only ResNet encoders can be dilated",
        ),
        ("mit-b0", {"deep_stem": True}, r"model\.deep_stem: only ResNet encoders can have a deep stem, not 'mit-b0'"),
        ("efficientnet-lite0", {"deep_stem": True}, r"model\.deep_stem: efficientnet-lite0 does not have it"),
        ("efficientnet-lite0", {"multi_grid": True}, r"model\.multi_grid: efficientnet-lite0 does not have it"),
        ("resnet-50", {"multi_grid": True}, r"model\.multi_grid: it multiplies a dilation; set model\.output_stride"),
    ],
)
def test_what_does_not_fit_is_one_line(encoder, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_encoder(ModelConfig(encoder=encoder, pretrained="none", **changes))
    assert "\n" not in str(caught.value)
