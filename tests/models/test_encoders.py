"""Any backbone that yields feature maps: same promises."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerModel,
    SwinBackbone,
)

from allspark.batch import IMAGENET
from allspark.config.schema import Config, ModelConfig
from allspark.errors import CheckpointError, ConfigError
from allspark.models.encoder import freeze_unused
from allspark.models.encoder_config import MIT_PRESETS
from allspark.models.encoders import build_encoder, resolve_encoder
from allspark.models.segmenter import build_segmenter
from tests.fakes import ENCODERS, tiny


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (1, 1), (33, 128)])
def test_maps_have_the_promised_channels_and_grid(name, size):
    encoder = build_encoder(tiny(name)).eval()
    maps = encoder(torch.randn(2, 3, *size))
    assert tuple(x.shape[1] for x in maps) == encoder.channels
    assert tuple(maps[-1].shape[2:]) == encoder.grid(size)
    for feature, stride in zip(maps, encoder.strides, strict=True):
        padded = encoder.padded_size(size)
        assert tuple(feature.shape[2:]) == tuple(-(-side // stride) for side in padded)


@pytest.mark.parametrize("name", ENCODERS)
def test_logits_have_the_image_size_and_ignore_the_batch(name):
    config = Config(model=tiny(name, decoder_channels=16))
    torch.manual_seed(0)
    network = build_segmenter(config.model, 4, config.data.crop).double().eval()
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
        network = build_segmenter(
            ModelConfig(encoder=name, pretrained="none", bottleneck="none"), 3, (64, 64), load_weights=False
        )
    assert network.decoder.classifier.in_channels == width


def test_local_folder_and_its_resolved_form(tmp_path):
    torch.manual_seed(0)
    saved = SwinBackbone(AutoConfig.for_model("swin", **ENCODERS["swin"]))
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


def test_resolving_a_preset_writes_the_normalisation_alone():
    config = ModelConfig(encoder="mit-b0")
    known = {"mean": IMAGENET.mean, "std": IMAGENET.std}
    assert resolve_encoder(config) == config.model_copy(update=known)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"encoder": "mit-b0"}, CheckpointError, "NVlabs .pth file"),
        ({"encoder": "some/backbone"}, CheckpointError, "hub cannot be reached"),
        ({"encoder": "swin", "pretrained": "/gone/weights"}, CheckpointError, "no weights for /gone/weights"),
        ({"encoder": "mit-b0", "pretrained": "/nowhere/mit.pth"}, CheckpointError, "/nowhere/mit.pth: no such file"),
        ({"encoder": "swin"}, ConfigError, "bare model type 'swin'"),
        ({"encoder": "swim", "pretrained": "none"}, ConfigError, "cannot build 'swim'"),
        ({"encoder": "bert", "pretrained": "none"}, ConfigError, "no feature maps"),
        ({"encoder": "swin", "pretrained": "x.pth"}, ConfigError, "needs an encoder mit-b0"),
        ({"encoder": "resnet-101"}, CheckpointError, "microsoft/resnet-101"),
        ({"encoder": "mit-b0", "output_stride": 16, "pretrained": "none"}, ConfigError, "only ResNet"),
        ({"encoder": "mit-b0", "encoder_config": {"depth": 3}}, ConfigError, "did you mean 'depths'?"),
        ({"encoder": "swin", "encoder_config": {"xyzzy": 3}}, ConfigError, "swin has no field 'xyzzy'"),
        ({"encoder": "mit-b0", "encoder_config": {"num_channels": 4}}, ConfigError, "images have 3 channels"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(kwargs, error, words, monkeypatch):
    monkeypatch.setattr("allspark.models.pretrained.hub_answers", lambda: False)
    with pytest.raises(error) as caught:
        build_encoder(ModelConfig(**kwargs))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_gone_is_one_clear_line_already_when_the_run_is_resolved(monkeypatch):
    monkeypatch.setattr("allspark.models.pretrained.hub_answers", lambda: False)
    with pytest.raises(CheckpointError, match=r"/gone/weights takes of an image .*; set model\.mean and model\.std"):
        resolve_encoder(ModelConfig(encoder="swin", pretrained="/gone/weights"))


RESNETS = {
    "bottleneck": {"embedding_size": 4, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 3]},
    "basic": {"embedding_size": 4, "hidden_sizes": [4, 8, 12, 16], "depths": [1, 2, 3, 3], "layer_type": "basic"},
    "stride in the 1x1": {
        "embedding_size": 4,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 2, 3],
        "downsample_in_bottleneck": True,
    },
}


@pytest.mark.parametrize("sizes", RESNETS.values(), ids=RESNETS)
@pytest.mark.parametrize(("stride", "expected"), [(None, (4, 8, 16, 32)), (16, (4, 8, 16, 16)), (8, (4, 8, 8, 8))])
def test_strides_of_resnets(sizes, stride, expected):
    config = ModelConfig(encoder="resnet", encoder_config=sizes, pretrained="none", output_stride=stride)
    encoder = build_encoder(config).eval()
    assert encoder.strides == expected
    for size in ((65, 97), (64, 33), (1, 50)):
        maps = encoder(torch.randn(1, 3, *size))
        padded = encoder.padded_size(size)
        assert [tuple(x.shape[2:]) for x in maps] == [tuple(-(-side // s) for side in padded) for s in expected]
        assert tuple(maps[-1].shape[2:]) == encoder.grid(size)
    assert encoder.padded_size((65, 97)) == (65, 97)  # convolutions take any size


@pytest.mark.parametrize("sizes", [RESNETS["bottleneck"], RESNETS["basic"]], ids=["bottleneck", "basic"])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_dilated_resnet_sees_what_the_strided_one_sees(sizes, stride):
    """Dilation computes the strided network's maps at more places: every n-th place holds the same numbers."""
    torch.manual_seed(0)
    config = ModelConfig(encoder="resnet", encoder_config=sizes, pretrained="none")
    strided = build_encoder(config).double().eval()
    dilated = build_encoder(config.model_copy(update={"output_stride": stride})).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 257, 257, dtype=torch.float64)
    for coarse, fine, s, t in zip(strided(image), dilated(image), strided.strides, dilated.strides, strict=True):
        torch.testing.assert_close(fine[:, :, :: s // t, :: s // t], coarse, rtol=1e-10, atol=1e-12)


def test_parameters_of_the_resnet_presets():
    """ResNet-50 and ResNet-101 have 25.6 and 44.5 million parameters, 2.05 of them in the classifier left out here."""
    for name, millions in {"resnet-50": 25.56 - 2.05, "resnet-101": 44.55 - 2.05}.items():
        config = ModelConfig(encoder=name, pretrained="none", output_stride=16)
        with torch.device("meta"):
            encoder = build_encoder(config)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
        assert encoder.channels == (256, 512, 1024, 2048) and encoder.grid((513, 513)) == (33, 33)
        assert resolve_encoder(config) == config.model_copy(update={"mean": IMAGENET.mean, "std": IMAGENET.std})


def test_weights_of_an_image_classifier_load_into_a_dilated_encoder(tmp_path):
    torch.manual_seed(0)
    saved = ResNetForImageClassification(ResNetConfig(**RESNETS["bottleneck"]))
    saved.save_pretrained(tmp_path)
    state = saved.resnet.state_dict()
    for encoder in (str(tmp_path), "resnet"):
        sizes = {} if encoder != "resnet" else RESNETS["bottleneck"]
        config = ModelConfig(encoder=encoder, encoder_config=sizes, pretrained=str(tmp_path), output_stride=16)
        body = build_encoder(config).body.state_dict()
        assert set(body) == set(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in body.items())
    resolved = resolve_encoder(config.model_copy(update={"encoder": str(tmp_path), "encoder_config": {}}))
    assert resolved.encoder == "resnet" and build_encoder(resolved).strides == (4, 8, 16, 16)


@pytest.mark.parametrize("name", ENCODERS)
def test_fields_that_a_hub_file_holds_and_transformers_no_longer_knows_do_no_harm(name, tmp_path):
    """Old configuration files carry fields of older versions; a run saved from one opens again."""
    encoder = build_encoder(tiny(name))
    encoder.body.config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"of_an_old_version": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    resolved = resolve_encoder(ModelConfig(encoder=str(tmp_path), pretrained="none"))
    assert "of_an_old_version" not in resolved.encoder_config
    assert build_encoder(resolved).channels == encoder.channels


@pytest.mark.parametrize("name", ENCODERS)
def test_parameters_that_get_no_gradient_are_found(name):
    encoder = build_encoder(tiny(name))
    freeze_unused(encoder)
    frozen = {key for key, parameter in encoder.named_parameters() if not parameter.requires_grad}
    norm = {"body.swin.layernorm.weight", "body.swin.layernorm.bias"}
    assert frozen == {"swin": norm, "dinov2": {"body.embeddings.mask_token"}}.get(name, set())
    encoder.train()
    sum(feature.sum() for feature in encoder(torch.randn(2, 3, 70, 50))).backward()
    assert {key for key, parameter in encoder.named_parameters() if parameter.grad is None} == frozen


@pytest.mark.parametrize("name", ["segformer", "swin", "dinov2"])
def test_checkpointed_activations_give_the_same_from_less_memory(name):
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = ModelConfig(encoder=name, encoder_config=ENCODERS[name], pretrained="none", drop_path=0.4)
        encoder = build_encoder(config.model_copy(update={"activation_checkpointing": checkpointed})).train()
        kept = []

        def pack(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = torch.stack([feature.square().sum() for feature in encoder(torch.randn(2, 3, 64, 64))]).sum()
        total.backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append((total.detach(), gradients, torch.rand(1), sum(kept)))
    (total, gradients, after, plain), (again, regained, then, lean) = results
    assert torch.equal(total, again) and torch.equal(after, then)
    assert len(gradients) == len(regained) > 10
    assert all(torch.equal(a, b) for a, b in zip(gradients, regained, strict=True))
    assert lean < 0.6 * plain


def test_what_cannot_be_checkpointed_is_one_line():
    config = ModelConfig(encoder="convnext", encoder_config=ENCODERS["convnext"], pretrained="none")
    with pytest.raises(ConfigError, match=r"model\.activation_checkpointing: 'convnext' cannot"):
        build_encoder(config.model_copy(update={"activation_checkpointing": True}))
