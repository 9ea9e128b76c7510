"""Where two networks conflict, how alike their features are, and the mapping of the second one."""

from __future__ import annotations

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.methods import build_method
from allspark.methods.ccvc import likeness
from tests.conftest import TINY
from tests.helpers import batch_of, pixels


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, "method.name=ccvc", *changes]), 5)


@pytest.mark.parametrize("conflict", ["paper", "code"])
def test_conflicts(conflict):
    method = build(f"method.conflict={conflict}", "method.confidence=0.5")
    torch.manual_seed(1)
    one, other = 2 * torch.randn(2, 1, 5, 4, 4)
    found = method._conflicts([pixels(one), pixels(other)])
    assert 0 < int((found[0] | found[1]).sum()) < 16
    for logits, mask in zip((one, other), found, strict=True):
        for row in range(4):
            for column in range(4):
                own = logits[0, :, row, column]
                sure = (own.softmax(0) if conflict == "paper" else own).max() > 0.5
                apart = one[0, :, row, column].argmax() != other[0, :, row, column].argmax()
                assert bool(mask[0, row, column]) == bool(sure and apart)


def test_each_of_both_features_has_half_the_gradient():
    torch.manual_seed(0)
    one, other = (torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cosine = (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)
    term = likeness(one, other)
    torch.testing.assert_close(term.mean(), 1 + cosine.mean())
    halves = torch.autograd.grad(term.mean(), [one, other])
    for half, whole in zip(halves, torch.autograd.grad(cosine.mean(), [one, other]), strict=True):
        torch.testing.assert_close(half, whole / 2)


def test_the_mapping_belongs_to_the_second_network():
    """It predicts with it: what is trained is what a candidate shows."""
    method = build("model.decoder_dropout=0").eval()
    image = torch.randn(1, 3, 64, 64)
    features = method.second.encode(image)
    mapped = method.second.mapping(method.second.decoder.hidden(features.maps))
    expected = method.second.classify(mapped, features).coarse
    torch.testing.assert_close(method.second.logits(image).coarse, expected, rtol=0, atol=0)
    method.train()
    method(batch_of(method.views, size=(64, 64)), Progress(0, 1, 10)).loss.backward()
    assert all(x.grad.any() for x in method.second.mapping.parameters())
