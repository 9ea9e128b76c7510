"""OHEM against a plain version that sorts, with gradients."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from allspark.methods.losses import cross_entropy, ohem_cross_entropy
from tests.helpers import pixels


def naive(logits, target, threshold, min_kept):
    """Pixel by pixel, as the published definition reads."""
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    labels = target.flatten()
    valid = [i for i in range(len(labels)) if labels[i] != 255]
    own = {i: probabilities[i, labels[i]].item() for i in valid}
    limit = threshold
    if min_kept > len(valid):
        limit = 2
    elif min_kept > 0:
        limit = max(limit, sorted(own.values())[min_kept - 1])
    kept = [i for i in valid if own[i] <= limit]
    if not kept:
        return logits.sum() * 0
    return torch.stack([-probabilities[i, labels[i]].log() for i in kept]).mean()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    min_kept=st.sampled_from([0, 1, 7, 30, 59, 60, 61, 10**6]),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_ohem_equals_the_plain_version_in_value_and_gradient(seed, threshold, min_kept, ignored):
    torch.manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 5, 6))
    target[torch.rand(target.shape) < ignored] = 255
    loss = ohem_cross_entropy(pixels(logits), target, threshold=threshold, min_kept=min_kept).mean()
    expected = naive(logits, target, threshold, min_kept)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_keeping_every_pixel_is_cross_entropy():
    logits, target = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.randint(0, 3, (1, 8, 8))
    every = ohem_cross_entropy(pixels(logits), target, threshold=0.0, min_kept=10**9).mean()
    torch.testing.assert_close(every, cross_entropy(pixels(logits), target).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(every, F.cross_entropy(logits, target), rtol=1e-12, atol=0)
