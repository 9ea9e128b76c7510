"""Networks that predict as one say the mean of what each says."""

import torch

from allspark.config.schema import Config, EvalConfig
from allspark.inference.predictor import Predictor
from allspark.methods import build_method
from allspark.models.ensemble import Ensemble
from tests.fakes import ENCODERS


def networks(count):
    model = {"encoder": "segformer", "encoder_config": ENCODERS["segformer"], "pretrained": "none"}
    config = Config.model_validate({"model": {**model, "decoder_channels": 16}, "method": {"name": "supervised"}})
    torch.manual_seed(0)
    return [build_method(config, 5).double().segmenter.eval() for _ in range(count)]


def test_probabilities_are_the_mean_at_every_pixel():
    parts, image = networks(2), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        expected = sum(network(image).softmax(1) for network in parts) / 2
        found = Ensemble(parts).logits(image).probabilities()
        windows = Predictor(Ensemble(parts), EvalConfig(mode="window", window=(32, 32))).labels(image)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert windows.shape == (2, 40, 56)


def test_a_class_that_all_rule_out_is_a_number_all_the_same():
    parts, image = networks(2), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for network in parts:
        network.decoder.classifier.bias.data[1] = -1e6
    found = Ensemble(parts).logits(image).probabilities()
    assert torch.isfinite(found).all() and float(found[:, 1].max()) < 1e-300


def test_the_networks_keep_their_modes():
    parts = networks(2)
    parts[1].train()
    both = Ensemble(parts)
    Predictor(both, EvalConfig()).labels(torch.randn(1, 3, 32, 32))
    assert [network.training for network in parts] == [False, True] and both.networks[0] is parts[0]
