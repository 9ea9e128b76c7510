"""The supervised baseline, with and without averaged weights."""

import copy

import pytest
import torch

from allspark.batch import Progress
from allspark.config.schema import Config
from allspark.methods import build_method
from tests.fakes import ENCODERS
from tests.helpers import batch_of


def build(**settings):
    torch.manual_seed(0)
    model = {"encoder": "resnet", "encoder_config": ENCODERS["resnet"], "pretrained": "none", "decoder_channels": 16}
    method = {"name": "supervised", **settings}
    return build_method(Config.model_validate({"data": {"crop": (64, 96)}, "model": model, "method": method}), 5)


def test_without_averaging_the_network_itself_is_deployed_and_nothing_more_is_held():
    method = build()
    assert method.deployed is method.segmenter
    assert all(name.startswith("segmenter.") for name in method.state_dict())


@pytest.mark.parametrize("decay", [0.6, 0.99])  # reached after some steps, and never
def test_the_average_is_that_of_a_plain_loop(decay):
    method = build(ema_decay=decay).double()
    for parameter in method.segmenter.parameters():  # weights that come after it was built
        parameter.data.add_(0.01)
    method.begin()
    expected = copy.deepcopy(method.segmenter.state_dict())
    optimizer = torch.optim.SGD(method.segmenter.parameters(), lr=0.05)
    for step in range(5):
        optimizer.zero_grad()
        method(batch_of(method.views, dtype=torch.float64), Progress(step, 5, 5)).loss.backward()
        optimizer.step()
        method.after_step(Progress(step, 5, 5))
        kept = min(1 - 1 / (step + 1), decay)
        for name, new in method.segmenter.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * new if new.is_floating_point() else new.clone()
    deployed = method.deployed.state_dict()
    assert deployed.keys() == expected.keys()
    for name, tensor in deployed.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-14)
    assert any("running_mean" in name for name in deployed)
    assert not torch.equal(deployed["decoder.classifier.weight"], method.segmenter.decoder.classifier.weight)
