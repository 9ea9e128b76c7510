"""The contrast of PC2Seg against a plain loop."""

import torch
import torch.nn.functional as F

from allspark.batch import IGNORE
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.kernels.logits import Logits
from allspark.methods import build_method
from allspark.methods.contrast import places, uniform
from tests.conftest import TINY


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, "method.name=pc2seg", *changes]), 5)


def test_negatives_are_of_other_images_and_other_labels():
    method = build("method.negatives=9", "method.temperature=0.4")
    strong, weak = torch.randn(3, 7, 2, 4), torch.randn(3, 7, 2, 4)
    scores = Logits(torch.randn(3, 5, 2, 4), (8, 16), (8, 16))
    valid = torch.ones(3, 8, 16, dtype=torch.bool)
    valid[1, :, 8:] = False
    labels = scores.coarse.argmax(1).flatten(1)
    labels[1] = labels[1].where(valid[1, ::4, ::4].flatten(), IGNORE)
    drawn = places(uniform((3, 9), 5, 4, strong.device), torch.tensor([16, 16, 16]))
    found, counted = method.contrast(strong, weak, scores, valid, 5), 0
    for image in range(3):
        rest = [i for i in range(3) if i != image]
        rows = torch.cat([weak[i].flatten(1).T for i in rest])[drawn[image]]
        theirs = torch.cat([labels[i] for i in rest])[drawn[image]]
        losses = []
        for pixel, (a, p) in enumerate(zip(strong[image].flatten(1).T, weak[image].flatten(1).T, strict=True)):
            if labels[image, pixel] != IGNORE:
                keep = (theirs != labels[image, pixel]) & (theirs != IGNORE)
                cosines = F.cosine_similarity(a[None], torch.cat([p[None], rows[keep]])) / 0.4
                losses.append(F.cross_entropy(cosines[None], torch.tensor([0])))
                counted += int(keep.sum())
        torch.testing.assert_close(found[image], torch.stack(losses).mean())
    assert counted > 50


def test_a_lone_image_has_no_negatives():
    method = build()
    scores = Logits(torch.randn(1, 5, 2, 4), (8, 16), (8, 16))
    valid = torch.ones(1, 8, 16, dtype=torch.bool)
    assert method.contrast(torch.randn(1, 7, 2, 4), torch.randn(1, 7, 2, 4), scores, valid, 0) == 0
