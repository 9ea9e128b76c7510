"""Which classes are positive, what they lose and weigh, against a version of one pixel at a time."""

import math

import pytest
import torch

from allspark.methods.fpl import FPL, balance, fuzzy_losses
from tests.helpers import pixels


def naive(student, target, settings):
    p = target.softmax(0)
    order = p.argsort(descending=True).tolist()
    most = min(3, len(order) - 1)
    count = 1
    while count < most and sum(p[k] for k in order[: count + 1]) < settings.positive_mass:
        count += 1
    positive, negative = order[:count], order[count:]
    total = sum(math.exp(student[n] - student[k]) for k in positive for n in negative)
    mean = sum(float(p[k]) for k in order[: count + 1]) / (count + 1)
    weight = 1 if settings.fuzziness == "none" else (mean - float(p[order[count]])) / mean
    return math.log1p(total) * weight, count


@pytest.mark.parametrize("kind", ["none", "linear"])
@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_fuzzy_losses(classes, kind):
    settings = FPL.settings(fuzziness=kind, positive_mass=0.95)
    torch.manual_seed(classes)
    student, target = torch.randn(2, 2, classes, 6, 7, dtype=torch.float64) * 2
    student.requires_grad_()
    losses = fuzzy_losses(pixels(student), target, settings)
    counts = set()
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(7)).tolist():
        expected, count = naive(student[b, :, y, x].tolist(), target[b, :, y, x], settings)
        assert float(losses[b, y, x].detach()) == pytest.approx(expected, rel=1e-10)
        counts.add(count)
    assert counts == set(range(1, min(3, classes - 1) + 1))
    losses.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_a_scale_makes_one_sum_another():
    assert float(balance(torch.tensor(6.0), torch.tensor(4.0))) == 1.5
    assert float(balance(torch.tensor(0.0), torch.tensor(0.0))) == 0
