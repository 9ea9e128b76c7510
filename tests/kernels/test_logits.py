"""Labels, losses and probabilities in bands equal those of the enlarged logits."""

import pytest
import torch
import torch.nn.functional as F
from benchmarks.measure import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from allspark.kernels import logits as module
from allspark.kernels.logits import Logits

EXACT = {"rtol": 1e-10, "atol": 1e-12}
side = st.integers(1, 9)


@st.composite
def cases(draw):
    """Coarse logits for images that may have been padded, and bands of some rows or of several images."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    batch, classes, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(side), draw(side)
    padded = height * draw(st.integers(1, 5)) + draw(st.integers(0, 2)), width * draw(st.integers(1, 5))
    size = tuple(draw(st.integers(max(1, length - 4), length)) for length in padded)
    coarse = 3 * torch.randn(batch, classes, height, width, dtype=torch.float64)
    target = torch.randint(classes, (batch, *size))
    target[torch.rand(target.shape) < 0.2] = 255
    return Logits(coarse, padded, size, draw(st.booleans())), target, draw(st.sampled_from([1, 500, 4000, 2**20]))


def plain(logits):
    full = F.interpolate(logits.coarse, logits.padded, mode="bilinear", align_corners=logits.aligned)
    return full[:, :, : logits.size[0], : logits.size[1]]


@settings(max_examples=150, deadline=None)
@given(case=cases(), grid=st.tuples(side, side))
def test_equals_the_enlarged_logits(case, grid):
    logits, target, budget = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module._BAND, "cpu", budget)
        full = plain(logits) if len(target) else torch.zeros(0, logits.coarse.shape[1], *logits.size).double()
        best, labels = logits.best()
        probabilities = full.softmax(1)
        torch.testing.assert_close(logits.probabilities(), probabilities, **EXACT)
        torch.testing.assert_close(best, probabilities.amax(1), **EXACT)
        entropy = -(probabilities * (probabilities + 1e-10).log()).sum(1)
        torch.testing.assert_close(logits.entropy(), entropy, **EXACT)
        # the best class, or one that is as good
        for found in (labels, logits.labels()):
            torch.testing.assert_close(full.gather(1, found[:, None])[:, 0], full.amax(1), **EXACT)
        if len(target):
            torch.testing.assert_close(logits.full(), full, **EXACT)
            resampled = F.interpolate(full, grid, mode="bilinear", align_corners=False)
            torch.testing.assert_close(logits.at(grid), resampled, **EXACT)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_losses_equal_torchs_in_value_and_gradient(case):
    logits, target, budget = case
    if not len(target):
        return
    coarse = logits.coarse.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module._BAND, "cpu", budget)
        weight = torch.randn(target.shape, dtype=torch.float64)
        expected = F.cross_entropy(plain(logits), target, ignore_index=255, reduction="none")
        found = logits.losses(target)
        torch.testing.assert_close(found, expected, **EXACT)
        gradients = [torch.autograd.grad((losses * weight).sum(), coarse)[0] for losses in (found, expected)]
        torch.testing.assert_close(*gradients, **EXACT)


def test_half_precision_is_enlarged_in_single():
    coarse = torch.randn(1, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    logits = Logits(coarse, (9, 9), (9, 9))
    target = torch.randint(3, (1, 9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        losses = logits.losses(target)
    expected = Logits(coarse.detach().float(), (9, 9), (9, 9)).losses(target)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and coarse.grad.dtype == torch.bfloat16


def test_the_logits_of_all_pixels_are_never_held():
    """The more classes, the larger they are; what lives at one time hardly grows."""

    def step(classes, loss):
        coarse = torch.randn(2, classes, 32, 32, requires_grad=True)
        logits = Logits(coarse, (128, 128), (128, 128))
        target = torch.randint(classes, (2, 128, 128))
        return peak_bytes(lambda: loss(logits, target).sum().backward())

    def enlarged(logits, target):
        return F.cross_entropy(logits.full(), target, reduction="none")

    assert step(100, Logits.losses) < 0.2 * step(100, enlarged)
