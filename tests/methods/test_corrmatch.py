"""Labels that spread over regions, and the threshold that says which labels begin it."""

from __future__ import annotations

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.kernels.logits import Logits
from allspark.methods import build_method
from allspark.methods.filters import AdaptiveThreshold
from allspark.methods.propagation import region_maps, spread_labels, spread_places
from allspark.models.correlation import CorrelationHead
from tests.helpers import batch_of

T = torch.tensor(0.6123, dtype=torch.float64)


def naive(labels, confident, regions, threshold):
    """Image by image, region by region, as the paper tells it."""
    labels, trusted = labels.clone(), confident.clone()
    for image in range(len(labels)):
        for region in regions[image]:
            sure = region & confident[image]
            if not sure.any() or sure.sum() / region.sum() < threshold:
                continue
            classes, counts = labels[image][sure].unique(return_counts=True)
            if counts.max() / counts.sum() > threshold:
                labels[image][region] = classes[counts.argmax()]
                trusted[image] |= region
    return labels, trusted


@pytest.mark.parametrize("seed", range(8))
def test_labels_spread_as_the_paper_tells_it(seed):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size):
        return torch.rand(*size, generator=generator)

    labels = (drawn(3, 9, 11) < 0.15 * (1 + seed % 3)).long() * 2
    confident = drawn(3, 9, 11) < 0.5 + 0.06 * seed
    centre = (drawn(3, 12, 2, 1, 1) * torch.tensor([9.0, 11.0])[:, None, None]).unbind(2)
    rows, columns = torch.arange(9.0)[:, None], torch.arange(11.0)
    regions = ((rows - centre[0]).square() + (columns - centre[1]).square() < 8) & (drawn(3, 1, 9, 11) < 0.95)
    regions[0, 3] = False
    expected = naive(labels, confident, regions, T)
    found = spread_labels(labels, confident, regions, T, 4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert (found[0] != labels).any() and (found[1] & ~confident).any() and not found[1].all()


def test_earlier_regions_have_a_say_in_later_ones():
    labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    confident = torch.ones(1, 1, 6, dtype=torch.bool)
    first, second = torch.zeros(2, 1, 1, 6, dtype=torch.bool)
    first[..., :4] = second[..., 2:] = True
    alone, _ = spread_labels(labels, confident, second[:, None], T, 2)
    assert alone.flatten().tolist() == [0, 0, 1, 1, 1, 1]
    both, _ = spread_labels(labels, confident, torch.stack([first, second], 1), T, 2)
    assert both.flatten().tolist() == [0, 0, 0, 0, 1, 1]  # half against half: the second region has no prevailing label


def test_regions_are_what_is_more_like_than_half_way():
    likeness = torch.tensor([[0.0, 0.1, 0.9, 1.0], [0.5, 0.5, 0.5, 0.5]] * 2)[None]
    like = Logits(torch.zeros(1, 5, 2, 2), (2, 2), (2, 2))
    maps = region_maps(likeness, torch.tensor([[0, 1]]), like)
    assert maps.flatten(2).tolist() == [[[False, False, True, True], [False] * 4]]


def test_places_are_spread_over_all_positions_and_begin_by_chance():
    places = spread_places(torch.tensor([0.0, 0.35, 0.999999]), 128, 1681)
    assert places.shape == (3, 128) and places.min() >= 0 and places.max() <= 1680
    for own in places:
        gaps = own.sort().values.diff()
        assert own.unique().numel() == 128 and gaps.max() <= 3 * 1681 / 128
    assert places[:, 0].tolist() == [0, 588, 1680]


def test_the_threshold_follows_the_highest_confidences():
    level = AdaptiveThreshold(0.5, 0.9, 4)
    confidence = torch.tensor([[[0.4, 0.8, 0.6, 0.99]]], dtype=torch.float64)
    labels = torch.tensor([[[1, 1, 3, 0]]])
    level.see(confidence, labels, torch.tensor([[[True, True, True, False]]]))
    assert float(level.value) == 0.5
    level.follow()
    assert float(level.value) == pytest.approx(0.9 * 0.5 + 0.1 * (0.8 + 0.6) / 2, rel=1e-12)
    level.follow()  # nothing was seen
    assert float(level.value) == pytest.approx(0.52, rel=1e-12)


def test_scores_of_positions_that_are_alike_are_shared():
    torch.manual_seed(0)
    head = CorrelationHead(3, 4, width=8, dropout=0.0).eval()
    scores = torch.randn(2, 4, 3, 5)
    spread, likeness = head(torch.randn(2, 3, 3, 5), scores)
    torch.testing.assert_close(likeness.sum(2), torch.ones(2, 15))
    expected = sum(scores.flatten(2)[:, :, i, None] * likeness[:, i, None] for i in range(15))
    torch.testing.assert_close(spread.flatten(2), expected)


def test_the_soft_target_is_mixed_as_the_images_are(tiny_config):
    """Without boxes both ways are one; where all pixels are pasted, only the partner is what the strong view shows."""
    changes = ["method.name=corrmatch", "method.confidence=0", "method.correlation_width=8", "method.regions=4"]
    found = {}
    for how in ("mixed", "code"):
        torch.manual_seed(0)
        method = build_method(apply_overrides(tiny_config, [*changes, f"method.soft_target={how}"]), 5)
        for part in method.modules():
            if hasattr(part, "dropout") and isinstance(part.dropout, float):
                part.dropout = 0.0
        torch.manual_seed(1)
        batch = batch_of(method.views, size=(64, 64))
        for boxed in (0, 64):
            batch.unlabeled.boxes[:] = torch.tensor([0, 0, boxed, boxed])
            found[how, boxed] = method(batch, Progress(0, 1, 4)).terms["soft"].mean().detach()
    assert found["mixed", 0] == found["code", 0] and found["mixed", 64] != found["code", 64]


def test_the_head_learns_in_the_supervised_warm_up_too(tiny_config):
    changes = ["method.name=corrmatch", "method.supervised_epochs=1", "method.correlation_width=8"]
    method = build_method(apply_overrides(tiny_config, changes), 5)
    output = method(batch_of(method.views, size=(64, 64)), Progress(0, 1, 4))
    assert output.terms.keys() == {"labeled", "labeled_correlated"}
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
