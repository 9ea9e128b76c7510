"""Any backbone that yields feature maps: same promises."""

import pytest
import torch
from transformers import AutoConfig, SegformerConfig, SegformerModel, SwinBackbone

from allspark.config import Config, ModelConfig
from allspark.errors import CheckpointError, ConfigError
from allspark.models.encoders import MIT_PRESETS, build_encoder, resolve_encoder
from allspark.models.segmenter import build_segmenter

TINY = {
    "segformer": {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 5, 8]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2},
}


def tiny(name, **kwargs):
    return ModelConfig(encoder=name, encoder_config=TINY[name], pretrained="none", **kwargs)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (1, 1), (33, 128)])
def test_maps_have_the_promised_channels_and_grid(name, size):
    encoder = build_encoder(tiny(name)).eval()
    maps = encoder(torch.randn(2, 3, *size))
    assert tuple(x.shape[1] for x in maps) == encoder.channels
    assert tuple(maps[-1].shape[2:]) == encoder.grid(size)
    for feature, stride in zip(maps, encoder.strides, strict=True):
        padded = encoder.padded_size(size)
        assert tuple(feature.shape[2:]) == tuple(-(-side // stride) for side in padded)


@pytest.mark.parametrize("name", TINY)
def test_logits_have_the_image_size_and_ignore_the_batch(name):
    config = Config(model=tiny(name, decoder_channels=16))
    torch.manual_seed(0)
    network = build_segmenter(config, 4).double().eval()
    images = torch.randn(3, 3, 50, 77, dtype=torch.float64)
    together = network(images)
    assert together.shape == (3, 4, 50, 77)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], network(images[i : i + 1]), rtol=1e-9, atol=1e-10)


def test_presets_are_segformer_sizes():
    """Parameters of the encoders, SegFormer paper, table 1 [millions]."""
    published = {"mit-b0": 3.4, "mit-b1": 13.1, "mit-b2": 24.2, "mit-b3": 44.0, "mit-b4": 60.8, "mit-b5": 81.4}
    for name, millions in published.items():
        with torch.device("meta"):
            model = SegformerModel(SegformerConfig(**MIT_PRESETS[name]))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize(("name", "width"), [("mit-b0", 256), ("mit-b2", 768)])
def test_head_grows_with_the_encoder(name, width):
    with torch.device("meta"):
        network = build_segmenter(Config(model=ModelConfig(encoder=name, pretrained="none")), 3, load_weights=False)
    assert network.decoder.classifier.in_channels == width


def test_local_folder_and_its_resolved_form(tmp_path):
    torch.manual_seed(0)
    saved = SwinBackbone(AutoConfig.for_model("swin", **TINY["swin"]))
    saved.save_pretrained(tmp_path / "Gewichte für Swin")
    config = ModelConfig(encoder=str(tmp_path / "Gewichte für Swin"))
    loaded = build_encoder(config)
    state = saved.state_dict()
    found = [
        name for name in state if name in (mine := loaded.body.state_dict()) and torch.equal(state[name], mine[name])
    ]
    assert len(found) > 0.9 * len(state)
    resolved = resolve_encoder(config)
    assert resolved.encoder == "swin" and resolved.pretrained == config.encoder
    again = build_encoder(resolved)
    for a, b in zip(loaded.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    # Without the folder, the architecture still opens for a checkpoint.
    bare = build_encoder(resolved.model_copy(update={"pretrained": "/gone"}), load_weights=False)
    assert bare.channels == loaded.channels


def test_resolving_a_preset_changes_nothing():
    config = ModelConfig(encoder="mit-b0")
    assert resolve_encoder(config) is config


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"encoder": "mit-b0"}, CheckpointError, "NVlabs .pth file"),
        ({"encoder": "some/backbone"}, CheckpointError, "hub cannot be reached"),
        ({"encoder": "mit-b0", "pretrained": "/nowhere/mit.pth"}, CheckpointError, "/nowhere/mit.pth: no such file"),
        ({"encoder": "swin"}, ConfigError, "bare model type 'swin'"),
        ({"encoder": "swim", "pretrained": "none"}, ConfigError, "cannot build 'swim'"),
        ({"encoder": "bert", "pretrained": "none"}, ConfigError, "no feature maps"),
        ({"encoder": "swin", "pretrained": "x.pth"}, ConfigError, "needs an encoder mit-b0"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(kwargs, error, words, monkeypatch):
    monkeypatch.setattr("allspark.models.encoders._hub_answers", lambda: False)
    with pytest.raises(error) as caught:
        build_encoder(ModelConfig(**kwargs))
    assert words in str(caught.value) and "\n" not in str(caught.value)
