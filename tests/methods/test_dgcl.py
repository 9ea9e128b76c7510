"""DGCL's bank and densities against plain loops."""

import pytest
import torch
import torch.nn.functional as F

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.kernels.logits import Logits
from allspark.methods import build_method, density
from tests.conftest import TINY
from tests.helpers import batch_of

SMALL = ["bank_size=6", "bank_new=4", "dense=3", "neighbours=[2,4]", "supervised_epochs=0", "contrast_drop=[0,0]"]


def build(*changes):
    torch.manual_seed(0)
    small = [f"method.{change}" for change in (*SMALL, *changes)]
    return build_method(apply_overrides(Config(), [*TINY, "method.name=dgcl", *small]), 5)


def test_density_is_the_mean_similarity_of_the_nearest(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(density, "_BLOCK", 25)  # in blocks of two
    features, bank = torch.randn(5, 3), torch.randn(9, 3)
    known = torch.arange(9) < 6
    similar = F.cosine_similarity(features[:, None], bank[None, :6], dim=2).sort(1, descending=True).values
    expected = (similar[:, :2].mean(1) + similar[:, :4].mean(1)) / 2
    torch.testing.assert_close(density.density(features, bank, (2, 4), known), expected)
    torch.testing.assert_close(density.density(features, bank[:6], (2, 4)), expected)


def test_the_least_sure_pixels_and_padding_have_no_label():
    torch.manual_seed(0)
    scores = Logits(3 * torch.randn(2, 5, 4, 4), (16, 16), (16, 16))
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[1, 8:] = False
    labels = density.sure_labels(scores, valid, 0.25)
    probability = scores.coarse.softmax(1)
    entropy = -(probability * probability.log()).sum(1)
    there = valid[:, ::4, ::4]
    sure = (entropy < torch.quantile(entropy[there], 0.75)) & there
    assert torch.equal(labels != IGNORE, sure) and sure.sum() == 18
    assert torch.equal(labels[sure], probability.argmax(1)[sure])


def test_banks_fill_and_then_the_contrast_begins():
    method = build("contrast_first=true")
    contrasts = []
    for step in range(4):
        torch.manual_seed(step)
        output = method(batch_of(method.views, size=(64, 64)), Progress(step, 10, 100))
        contrasts.append(float(output.terms["contrast"].mean().detach()))
        assert output.metrics["bank_fill"] == (2 / 3 if step == 0 else 1)
    assert contrasts[:2] == [0, 0] and min(contrasts[2:]) > 0
    output.terms["contrast"].mean().backward()
    for part in (method.projection, method.segmenter.encoder):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters() if p.dim() > 1)


def test_a_bank_with_fewer_rows_than_neighbours_is_refused():
    with pytest.raises(ConfigError, match=r"method.bank_size: 3 rows .* set 4 or more"):
        build("bank_size=3")
