"""Implicit semantic augmentation: running statistics of classes, and what they add to logits."""

from __future__ import annotations

import torch

from allspark.batch import IGNORE
from allspark.methods.implicit_augmentation import ClassStatistics, hardened

K, C = 3, 4


def test_statistics_are_those_of_all_pixels_so_far():
    torch.manual_seed(0)
    statistics = ClassStatistics(K, C)
    seen = {k: [] for k in range(K)}
    for _ in range(3):
        features, labels = torch.randn(2, C, 3, 5) + 7, torch.randint(0, 2, (2, 3, 5))  # never of class 2
        labels[0, 0] = IGNORE
        statistics.update(features, labels)
        for b, h, w in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
            if labels[b, h, w] != IGNORE:
                seen[int(labels[b, h, w])].append(features[b, :, h, w].double())
    for k in (0, 1):
        own = torch.stack(seen[k])
        assert int(statistics.count[k]) == len(own)
        torch.testing.assert_close(statistics.mean[k], own.mean(0))
        torch.testing.assert_close(statistics.variance[k], own.var(0, correction=0))
    assert not any(x[2].any() for x in statistics.buffers())


def test_margins_are_half_the_variance_of_differences_of_logits():
    torch.manual_seed(0)
    statistics = ClassStatistics(K, C)
    statistics.variance.copy_(torch.rand(K, C))
    weight = torch.randn(K, C, dtype=torch.float64)
    margins = statistics.margins(weight, 1.5)
    for y in range(K):
        for j in range(K):
            variance = ((weight[j] - weight[y]) ** 2 * statistics.variance[y]).sum()
            torch.testing.assert_close(margins[y, j], 0.75 * variance, rtol=1e-10, atol=1e-12)


def test_hardened_logits_have_the_margins_of_their_class():
    logits = torch.randn(1, K, 1, 2)
    margins = torch.rand(K, K)
    harder = hardened(logits, torch.tensor([[[2, IGNORE]]]), margins)
    torch.testing.assert_close(harder[0, :, 0, 0], logits[0, :, 0, 0] + margins[2])
    assert torch.equal(harder[..., 1], logits[..., 1])
