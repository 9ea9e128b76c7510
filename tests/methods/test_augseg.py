"""Where AugSeg pastes labelled content, and how sure of an image it takes the teacher to be."""

import math
from dataclasses import replace

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.methods import build_method
from allspark.methods.augseg import image_confidence
from allspark.methods.mixing import partners
from tests.conftest import TINY
from tests.helpers import batch_of, pixels


def strong_views(chance, *changes):
    """What the network is shown where labelled images are all 1 and others 0."""
    torch.manual_seed(0)
    method = build_method(apply_overrides(Config(), [*TINY, "method.name=augseg", *changes]), 5)
    batch = batch_of(method.views, 4, 4)
    boxes = torch.tensor([[10, 10, 40, 60], [20, 5, 50, 50]]).expand(1, 4, 2, 4)
    strong = torch.zeros_like(batch.unlabeled.strong)
    own = replace(batch.unlabeled, strong=strong, boxes=boxes, chance=torch.tensor(chance))
    labeled = replace(batch.labeled, image=torch.ones_like(batch.labeled.image))
    shown, encode = [], method.encode

    def spy(labeled, strong):
        shown.append(strong)
        return encode(labeled, strong)

    method.encode = spy
    output = method(replace(batch, unlabeled=own, labeled=labeled), Progress(0, 1, 1))
    return shown[0][:, 0].bool(), output


def test_labelled_content_shows_where_both_boxes_meet_in_images_that_the_teacher_is_unsure_of():
    shown, output = strong_views([1.0, 0.0, 1.0, 1.0])
    meeting = torch.zeros(64, 96, dtype=torch.bool)
    meeting[20:40, 10:50] = True
    for image, injected in zip(shown, [False, True, True, True], strict=True):  # the partner of the first has none
        assert torch.equal(image, meeting & injected)
    assert float(output.metrics["injected"]) == 0.75


def test_labelled_content_can_be_left_out():
    shown, output = strong_views([1.0] * 4, "method.inject=false")
    assert not shown.any() and float(output.metrics["injected"]) == 0


def test_neighbours_are_partners():
    assert [partners(n, torch.device("cpu")).tolist() for n in (1, 2, 5)] == [[0], [1, 0], [1, 0, 3, 2, 4]]


def test_confidence_of_an_image_equals_a_loop_and_padding_does_not_count():
    torch.manual_seed(0)
    scores = pixels(3 * torch.randn(2, 5, 3, 4, dtype=torch.float64))
    valid = torch.rand(2, 3, 4) < 0.7
    valid[1] = False
    found = image_confidence(scores, valid)
    values = []
    for y in range(3):
        for x in range(4):
            if valid[0, y, x]:
                p = scores.coarse[0, :, y, x].softmax(0).tolist()
                values.append((1 + sum(q * math.log(q) for q in p) / math.log(5)) * max(p))
    assert float(found[0]) == pytest.approx(sum(values) / len(values), rel=1e-8) and float(found[1]) == 0
