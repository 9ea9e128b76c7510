"""Two opinions and their calibration; classes of whole images, and where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.data.boxes import SquareBoxes
from allspark.errors import ConfigError
from allspark.methods import build_method
from allspark.methods.pseudoseg import calibrated
from allspark.models.cam import CamHead
from tests.helpers import batch_of


@pytest.fixture
def opinions():
    torch.manual_seed(0)
    return torch.randn(2, 5, 3, 4, dtype=torch.float64), 7 * torch.randn(2, 5, 3, 4, dtype=torch.float64)


def naive(decoded, attended, temperature, over):
    """Pixel by pixel."""
    found = torch.zeros_like(decoded)
    for image in range(len(decoded)):
        of = slice(image, image + 1) if over == "image" else slice(None)
        numbers = [*decoded[of].flatten().tolist(), *attended[of].flatten().tolist()]
        scale = (sum(x * x for x in numbers) / len(numbers) + 1e-8) ** 0.5
        for row in range(3):
            for column in range(4):
                one, other = (torch.softmax(x[image, :, row, column] / scale, 0) for x in (decoded, attended))
                sharp = ((one + other) / 2) ** (1 / temperature)
                found[image, :, row, column] = sharp / sharp.sum()
    return found


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_calibration_is_what_it_is_pixel_by_pixel(opinions, temperature, over):
    found = calibrated(*opinions, temperature, over)
    torch.testing.assert_close(found, naive(*opinions, temperature, over), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


def test_the_scale_of_both_opinions_does_not_matter(opinions):
    """Of both together: how they compare to one another does."""
    found = calibrated(*opinions, 0.5, "batch")
    torch.testing.assert_close(calibrated(*(10 * x for x in opinions), 0.5, "batch"), found, rtol=1e-6, atol=0)
    decoded, attended = opinions
    assert not torch.allclose(calibrated(10 * decoded, attended, 0.5, "batch"), found, rtol=1e-2)


def test_opinions_that_agree_keep_their_order_at_any_scale(opinions):
    decoded, _ = opinions
    for scale in (1, 10):
        found = calibrated(scale * decoded, decoded, 0.5, "image")
        assert torch.equal(found.argsort(1), decoded.argsort(1))
    energy = decoded.square().mean().sqrt()
    torch.testing.assert_close(
        calibrated(decoded, decoded, 1.0, "batch"), (decoded / energy).softmax(1), rtol=1e-6, atol=0
    )  # one opinion, not sharpened: plain soft labels


def test_sharpening_raises_the_best_and_an_image_can_stand_alone(opinions):
    plain, sharp = (calibrated(*opinions, t, "image") for t in (1.0, 0.5))
    assert (sharp.amax(1) > plain.amax(1)).all() and torch.equal(sharp.argmax(1), plain.argmax(1))
    alone = [calibrated(*(x[i : i + 1] for x in opinions), 0.5, "image") for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), sharp, rtol=1e-12, atol=0)
    alone = [calibrated(*(x[i : i + 1] for x in opinions), 0.5, "batch") for i in range(2)]
    assert not torch.allclose(torch.cat(alone), calibrated(*opinions, 0.5, "batch"))


def head(background):
    torch.manual_seed(1)
    made = CamHead((3, 4, 6), 5, background, width=7).double()
    maps = [torch.randn(2, c, h, h, dtype=torch.float64) for c, h in ((3, 8), (4, 4), (6, 4))]
    return made, maps


@pytest.mark.parametrize("background", [0, 3, None])
def test_the_head_is_grad_cam_and_attention(background):
    """Its maps against gradients that autograd finds, and loops."""
    made, maps = head(background)
    made.score = torch.nn.Identity()
    last = maps[-1].requires_grad_()
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[0, :, 8:] = False
    present = torch.rand(2, 5 - (background is not None)) < 0.6
    present[0, 0] = True
    classes, scores = made(maps, valid, present)
    tokens = torch.cat(maps[-2:], 1)
    query, key = (layer.weight[:, :, 0, 0] @ tokens.flatten(2) for layer in (made.query, made.key))
    inside = valid[:, ::4, ::4].flatten(1)
    for image in range(2):
        seen = []
        for number, there in enumerate(present[image]):
            grad = torch.autograd.grad(classes[image, number], last, retain_graph=True)[0][image]
            weighted = (grad.mean((1, 2))[:, None, None] * last[image]).sum(0).relu().flatten()
            seen.append(weighted / weighted.max() if there and weighted.max() > 0 else torch.zeros_like(weighted))
        value = torch.stack(seen)
        out = torch.zeros_like(value)
        for place in range(16):
            weights = query[image, :, place] @ key[image] / 7**0.5
            weights = torch.where(inside[image] & inside[image, place], weights, -1e9).softmax(0)
            out[:, place] = value @ weights + value[:, place]
        if background is not None:
            out = torch.cat([2 - out.max(0, keepdim=True).values, out])
        torch.testing.assert_close(scores[image].flatten(1), out, rtol=1e-9, atol=1e-12)


def test_without_labels_the_classifier_says_what_is_there():
    made, maps = head(0)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    made.classifier.bias.data[:] = torch.tensor([50.0, -50.0, 50.0, -50.0])
    told = torch.tensor([True, False, True, False]).expand(2, -1)
    torch.testing.assert_close(made(maps, valid)[1], made(maps, valid, told)[1])
    assert not torch.allclose(made(maps, valid)[1], made(maps, valid, ~told)[1])


def test_no_gradient_of_scores_goes_into_the_encoder():
    made, maps = head(0)
    maps = [x.requires_grad_() for x in maps]
    classes, scores = made(maps, torch.ones(2, 16, 16, dtype=torch.bool))
    scores.square().sum().backward()
    assert all(x.grad is None for x in maps) and made.classifier.weight.grad is None
    assert made.query.weight.grad.any() and made.key.weight.grad.any()
    classes.sum().backward()
    assert maps[-1].grad.any()


def test_classes_of_an_image_are_those_of_its_mask():
    made, _ = head(1)
    mask = torch.full((3, 4, 4), IGNORE)
    mask[0, 0, 0], mask[0, 1, 1], mask[1, 2, 2] = 4, 1, 1
    present, known = made.present(mask)
    assert present.tolist() == [[False, False, False, True], [False] * 4, [False] * 4]
    assert known.flatten().tolist() == [True, True, False]
    every, _ = head(None)[0].present(mask)
    assert every[0].tolist() == [False, True, False, False, True]


def test_squares_are_cut_off_at_the_borders():
    rng = np.random.default_rng(0)
    boxes = np.stack([SquareBoxes(20).draw((50, 70), rng)[0] for _ in range(2000)])
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() == 0 and boxes[:, 2].max() == 50 and boxes[:, 3].max() == 70
    assert heights.max() == widths.max() == 20 and heights.min() == widths.min() == 10
    assert abs(heights.mean() - 18) < 0.2  # two fifths of the middles lose 5 on average
    top, left, bottom, right = SquareBoxes(0).draw((50, 70), rng)[0]
    assert top == bottom and left == right


def test_holes_and_padding_do_not_count(tiny_config):
    method = build_method(apply_overrides(tiny_config, ["method.name=pseudoseg", "method.cutout=30"]), 5)
    valid = torch.rand(2, 64, 64) < 0.8
    batch = batch_of(method.views, size=(64, 64), valid=valid)
    batch.unlabeled.boxes[:] = torch.tensor([10, 20, 30, 64])
    counted = valid.clone()
    counted[:, 10:30, 20:] = False
    shown = []
    logits = method.segmenter.logits
    method.segmenter.logits = lambda image: shown.append(image) or logits(image)
    output = method(batch, Progress(0, 1, 4))
    assert int(output.terms["unlabeled"].count) == int(counted.sum())
    strong = shown[-1]
    assert not strong[:, :, 10:30, 20:].any() and torch.equal(strong[..., :20], batch.unlabeled.strong[0][..., :20])


def test_the_loss_is_the_soft_cross_entropy_of_what_counts(tiny_config):
    changes = ["method.name=pseudoseg", "method.cutout=0"]
    method = build_method(apply_overrides(tiny_config, changes), 5)
    batch = batch_of(method.views, size=(64, 64))
    method.eval()
    target = method.soft_labels(batch.unlabeled).full()
    ranked = target.amax(1).flatten().sort().values[3000:5000].double()
    widest = int(ranked.diff().argmax())  # no pixel is right at the threshold
    method.filter.confidence = middle = float(ranked[widest : widest + 2].mean())
    term = method(batch, Progress(0, 1, 4)).terms["unlabeled"]
    losses = F.cross_entropy(method.segmenter(batch.unlabeled.strong[0]), target, reduction="none")
    keep = target.amax(1) >= middle
    assert 0.3 < keep.double().mean() < 0.7
    torch.testing.assert_close(term.mean(), (losses * keep).mean(), rtol=1e-4, atol=1e-6)


def test_a_background_that_there_is_not_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"^method.background: 5 is no class; there are 0 to 4$"):
        build_method(apply_overrides(tiny_config, ["method.name=pseudoseg", "method.background=5"]), 5)
