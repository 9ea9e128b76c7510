"""Plain transformers: which layers are tapped, and the DPT head on them."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from allspark.config.schema import ModelConfig
from allspark.errors import ConfigError
from allspark.models.dpt import DPTHead
from allspark.models.encoder_config import body_config, write_taps
from allspark.models.encoders import build_encoder, resolve_encoder
from allspark.models.segmenter import build_segmenter
from tests.fakes import ENCODERS, tiny

EIGHT = ENCODERS["dinov2"] | {"num_hidden_layers": 8}


def dinov2(**fields):
    return ModelConfig(encoder="dinov2", encoder_config=EIGHT | fields, pretrained="none", bottleneck="none")


@pytest.mark.parametrize(
    ("depth", "taps"),
    [(12, [3, 6, 9, 12]), (24, [5, 12, 18, 24]), (40, [10, 20, 30, 40]), (5, [2, 3, 4, 5]), (3, [0, 1, 2, 3])],
)
def test_four_layers_are_tapped_over_the_depth(depth, taps):
    """12, 24 and 40 layers (DINOv2-S and -B, -L, -G) as in UniMatch V2."""
    assert body_config(dinov2(num_hidden_layers=depth)).out_indices == taps


def test_maps_are_layers_through_the_final_norm():
    torch.manual_seed(0)
    encoder = build_encoder(dinov2()).double().eval()
    plain = Dinov2Model(Dinov2Config(**EIGHT)).double().eval()
    state = {name.removeprefix("dinov2."): tensor for name, tensor in encoder.body.state_dict().items()}
    plain.load_state_dict(state, strict=False)
    image = torch.randn(2, 3, 28, 42, dtype=torch.float64)
    layers = plain(image, output_hidden_states=True).hidden_states
    for place, ours in zip((2, 4, 6, 8), encoder(image), strict=True):
        tokens = plain.layernorm(layers[place])[:, 1:]  # without the class token
        torch.testing.assert_close(ours, tokens.mT.unflatten(2, (2, 3)), rtol=1e-10, atol=1e-12)


def test_taps_are_written_out_and_resolved_once(tmp_path):
    bare = resolve_encoder(dinov2())
    assert bare.encoder_config == EIGHT | {"out_indices": [2, 4, 6, 8]} and resolve_encoder(bare) == bare
    Dinov2Model(Dinov2Config(**EIGHT)).save_pretrained(tmp_path)
    of_folder = resolve_encoder(ModelConfig(encoder=str(tmp_path)))
    assert of_folder.encoder_config["out_indices"] == [2, 4, 6, 8] and resolve_encoder(of_folder) == of_folder
    own = resolve_encoder(dinov2(out_indices=[1, 3, 5, 8]))
    assert build_encoder(own).body.out_indices == [1, 3, 5, 8]
    named = dinov2(out_features=["stage1", "stage3", "stage5", "stage8"])
    assert build_encoder(resolve_encoder(named)).body.out_indices == [1, 3, 5, 8]


def test_earlier_runs_had_the_last_layers():
    assert write_taps(dinov2(), earlier=True).encoder_config["out_indices"] == [5, 6, 7, 8]
    written = dinov2(out_indices=[5, 6, 7, 8], out_features=[f"stage{i}" for i in range(5, 9)])
    assert write_taps(written, earlier=True) == written
    for other in ("swin", "segformer"):
        assert write_taps(tiny(other), earlier=True) == tiny(other)


@pytest.mark.parametrize(
    ("hidden", "width", "projected"),
    [
        (384, 64, [48, 96, 192, 384]),
        (768, 128, [96, 192, 384, 768]),
        (1024, 256, [256, 512, 1024, 1024]),
        (1536, 384, [1536] * 4),
    ],
)
def test_the_head_is_the_published_one_for_an_encoder_of_this_width(hidden, width, projected):
    """DINOv2-S to -G in UniMatch V2; a width of one's own leaves the projections."""
    with torch.device("meta"):
        head, other = (DPTHead.for_encoder([hidden] * 4, 21, own) for own in (None, 32))
    assert (head.classifier.in_channels, other.classifier.in_channels) == (width, 32)
    for one in (head, other):
        assert [layer.out_channels for layer in one.project] == projected


def test_the_network_has_as_many_parameters_as_the_published_one():
    """UniMatch V2, DINOv2-B: 97.5 millions, 10.9 of the head, of which a residual unit is never used."""
    config = ModelConfig(encoder="dinov2", encoder_config={"image_size": 518}, pretrained="none", decoder="dpt")
    with torch.device("meta"):
        network = build_segmenter(config.model_copy(update={"bottleneck": "none"}), 21, (518, 518))
    unused = 2 * (9 * 128 * 128 + 128)
    head, whole = (sum(p.numel() for p in part.parameters()) + unused for part in (network.decoder, network))
    assert round(head / 1e6, 1) == 10.9 and round(whole / 1e6, 1) == 97.5


def test_it_gives_eight_times_the_grid_and_ignores_the_batch():
    torch.manual_seed(0)
    config = dinov2().model_copy(update={"decoder": "dpt", "decoder_channels": 8})
    network = build_segmenter(config, 4, (56, 56)).double().eval()
    images = torch.randn(3, 3, 50, 77, dtype=torch.float64)
    logits = network.logits(images)
    assert logits.coarse.shape == (3, 4, 8 * 4, 8 * 6) and logits.padded == (56, 84) and logits.aligned
    together = network(images)
    assert together.shape == (3, 4, 50, 77)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], network(images[i : i + 1]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "strides"),
    [(tiny("swin", decoder="dpt"), "4, 8, 16, 32"), (dinov2(out_indices=[4, 8]), "14, 14")],
)
def test_an_encoder_that_it_does_not_fit_is_one_line(config, strides):
    with pytest.raises(ConfigError, match=rf"model\.decoder: dpt takes .*strides {strides}: use segformer") as caught:
        build_segmenter(config.model_copy(update={"decoder": "dpt"}), 4, (56, 56))
    assert "\n" not in str(caught.value)
