"""What contrasting methods share, against plain versions."""

import pytest
import torch
import torch.nn.functional as F

from allspark.kernels.logits import Logits
from allspark.methods.contrast import at_grid, gather_images, info_nce, places, shared_rows, uniform
from allspark.methods.teacher import Average
from allspark.models.projection import ProjectionHead


def test_info_nce_is_a_cross_entropy_of_cosines():
    torch.manual_seed(0)
    anchors, positives, negatives = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.randn(4, 6, 5)
    losses = info_nce(anchors, positives, negatives, 0.3)
    for group in range(4):
        for a in range(3):
            others = torch.cat([positives[group, a][None], negatives[group]])
            cosines = F.cosine_similarity(anchors[group, a][None], others) / 0.3
            torch.testing.assert_close(losses[group, a], F.cross_entropy(cosines[None], torch.tensor([0])))
    counted = torch.rand(4, 1, 6) < 0.5
    counted[0] = False
    masked = info_nce(anchors, positives, negatives, 0.3, counted)
    assert (masked[0] == 0).all()  # its positive is alone
    few = [info_nce(anchors[i], positives[i], negatives[i][counted[i, 0]], 0.3) for i in range(4)]
    torch.testing.assert_close(masked, torch.stack(few))


def test_draws_follow_from_the_step_and_are_even():
    one = uniform((40, 50), 7, 1, torch.device("cpu"))
    assert torch.equal(one, uniform((40, 50), 7, 1, torch.device("cpu")))
    for other in (uniform((40, 50), 8, 1, one.device), uniform((40, 50), 7, 2, one.device)):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.1
    assert one.min() >= 0 and one.max() < 1 and len(one.unique()) > 1990
    counts = torch.histc(one, 10, 0, 1)
    assert counts.min() > 140 and counts.max() < 260
    neighbours = torch.stack([one.flatten()[1:], one.flatten()[:-1]])
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.1


def test_places_are_within_the_count():
    draws = torch.tensor([[0.0, 0.5, 1 - 2**-40], [0.0, 0.5, 0.9]], dtype=torch.float64)
    assert places(draws, torch.tensor([4, 0])).tolist() == [[0, 2, 3], [0, 0, 0]]


def test_labels_on_the_grid_of_a_padded_image():
    labels = torch.arange(6 * 5).view(1, 6, 5) % 7
    small = at_grid(labels, Logits(torch.zeros(1, 3, 2, 2), (8, 8), (6, 5)), 255)
    assert small.tolist() == [[[0, 4], [int(labels[0, 4, 0]), int(labels[0, 4, 4])]]]
    narrow = at_grid(labels[:, :, :3], Logits(torch.zeros(1, 3, 2, 2), (8, 8), (6, 3)), 255)
    assert narrow[0, :, 1].tolist() == [255, 255]


def test_shared_rows_are_those_of_the_images_in_order():
    x = torch.randn(3, 2, 2, 4, requires_grad=True)
    rows = torch.tensor([[0, 5], [11, 5]])
    assert torch.equal(gather_images(x, 1), x)
    found = shared_rows(x, rows, 1)
    assert torch.equal(found, x.flatten(0, 2)[rows])
    found.sum().backward()
    assert x.grad.flatten(0, 2).sum(1).tolist() == [4 * rows.flatten().tolist().count(i) for i in range(12)]


@pytest.mark.parametrize("kernels", [(1,), (3, 3)])
def test_a_projection_and_its_average(kernels):
    torch.manual_seed(0)
    head = ProjectionHead(4, 6, kernels, 0.1)
    average = Average(head, 0.9, buffers="own")
    assert head(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)
    assert not average.train().network.training and not any(p.requires_grad for p in average.parameters())
    before = average.network.layers[1].running_mean.clone()
    with average.training_pass() as network:
        network(torch.randn(2, 4, 5, 5) + 3)
    assert not torch.equal(average.network.layers[1].running_mean, before) and not average.network.training
