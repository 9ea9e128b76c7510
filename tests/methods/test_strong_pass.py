"""Labelled images and strong views in one pass or in two."""

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import JointTeacher
from allspark.config.schema import Config
from allspark.methods import METHODS, build_method
from tests.conftest import TINY
from tests.helpers import batch_of

METHODS_WITH = [name for name, method in METHODS.items() if issubclass(method.settings, JointTeacher)]
CNN = [
    "model.encoder=resnet",
    "model.encoder_config={embedding_size: 8, hidden_sizes: [8, 16, 24, 32], depths: [1, 2, 1, 2]}",
]
PLAIN = ["model.decoder_dropout=0", "method.confidence=0"]


def built(name, way, *changes):
    torch.manual_seed(0)
    changes = [*TINY, f"method.name={name}", f"method.strong_pass={way}", *PLAIN, *changes]
    method = build_method(apply_overrides(Config(), changes), 5).double()
    method.begin()
    return method


def step(method):
    torch.manual_seed(1)
    output = method(batch_of(method.views, dtype=torch.float64), Progress(3, 1, 9))
    output.loss.backward()
    return output


@pytest.mark.parametrize("name", METHODS_WITH)
def test_without_batch_norm_it_is_all_the_same(name):
    losses = []
    for way in ("joint", "apart"):
        method = built(name, way)
        for part in method.modules():
            if isinstance(part, torch.nn.BatchNorm2d):  # that of the decoder
                part.eval()
        losses.append(step(method).loss)
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", METHODS_WITH)
def test_apart_the_running_statistics_are_those_of_labelled_images(name):
    method = built(name, "apart", *CNN)
    step(method)
    alone = built(name, "apart", *CNN, "method.unlabeled_weight=0")  # labelled images alone
    step(alone)
    for (key, mine), theirs in zip(method.segmenter.named_buffers(), alone.segmenter.buffers(), strict=True):
        if "running" in key:
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, msg=key)
    joint = built(name, "joint", *CNN)
    step(joint)
    first = next(key for key, _ in joint.segmenter.named_buffers() if "running_mean" in key)
    assert not torch.allclose(joint.segmenter.get_buffer(first), method.segmenter.get_buffer(first))


@pytest.mark.parametrize("name", METHODS_WITH)
def test_the_bottleneck_sees_both_kinds_in_any_case(name):
    method = built(name, "apart", "model.bottleneck=allspark", "model.bottleneck_warmup_epochs=0")
    seen = []
    method.segmenter.bottleneck.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    step(method)
    feature, guide = next(inputs for inputs in seen if len(inputs) > 1 and inputs[1] is not None)
    assert guide.num_labeled == 2 and len(feature) == 4
