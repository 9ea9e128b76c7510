"""The assistant learns from pseudo-labels alone, the student from masks alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.engine.optim import build_optimizer
from allspark.methods import build_method
from allspark.methods.gta_seg import _ASSISTANT, _STUDENT
from allspark.methods.losses import weighted_cross_entropy
from tests.conftest import TINY
from tests.helpers import batch_of, pixels

WARM, FIRST, LATER = (Progress(step, 2, 20) for step in (1, 2, 4))


def build(*changes):
    torch.manual_seed(0)
    method = build_method(apply_overrides(Config(), [*TINY, "method.name=gta-seg", *changes]), 5)
    method.begin()
    return method


def learn(method, progress):
    """One step, each phase an update of its own."""
    batch = batch_of(method.views, size=(64, 64))
    for phase in method.phases_of(progress):
        method.zero_grad()
        method(batch, progress, phase).loss.backward()
        with torch.no_grad():
            for x in method.parameters():
                if x.grad is not None:
                    x -= 0.1 * x.grad
        method.after_phase(phase, progress)
    method.after_step(progress)


def equal(one, other):
    return {name: torch.equal(x, y) for (name, x), y in zip(one.named_parameters(), other.parameters(), strict=True)}


def test_each_phase_trains_its_network():
    method = build()
    batch = batch_of(method.views, size=(64, 64))
    networks = method.assistant, method.segmenter
    for phase, mine, rests in ((_ASSISTANT, *networks), (_STUDENT, *networks[::-1])):
        method.zero_grad()
        method(batch, LATER, phase).loss.backward()
        assert all(x.grad is not None for x in mine.parameters())
        assert all(x.grad is None for x in rests.parameters())


def test_masks_do_not_reach_the_assistant():
    losses = []
    for more in (0, 1):
        method = build()
        batch = batch_of(method.views, size=(64, 64))
        batch = replace(batch, labeled=replace(batch.labeled, mask=(batch.labeled.mask + more) % 5))
        losses.append([method(batch, LATER, phase).loss for phase in (_ASSISTANT, _STUDENT)])
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_in_the_warm_up_the_assistant_rests_and_then_is_the_student():
    method = build()
    before = {name: x.clone() for name, x in method.assistant.named_parameters()}
    learn(method, Progress(0, 2, 20))
    assert list(method.phases_of(WARM)) == [_STUDENT] and list(method.phases_of(FIRST)) == [_ASSISTANT, _STUDENT]
    assert all(torch.equal(x, before[name]) for name, x in method.assistant.named_parameters())
    assert not all(equal(method.segmenter, method.assistant).values())
    learn(method, WARM)
    assert all(equal(method.segmenter, method.assistant).values())
    assert all(equal(method.segmenter, method.teacher.network).values())


@pytest.mark.parametrize("decoder", ["segformer", "deeplabv3plus"])
def test_the_student_follows_the_features_alone(decoder):
    method = build(f"model.decoder={decoder}")
    for network in (method.segmenter, method.assistant):
        for x in network.parameters():
            x.data = torch.randn_like(x)
    student = {name: x.clone() for name, x in method.segmenter.named_parameters()}
    method.after_phase(_ASSISTANT, LATER)
    decay = min(1 - 1 / 3, 0.999)
    kept = ("decoder.classifier.",) if decoder == "segformer" else ("decoder.classifier.", "decoder.fuse.")
    for (name, mine), theirs in zip(method.segmenter.named_parameters(), method.assistant.parameters(), strict=True):
        expected = student[name] if name.startswith(kept) else decay * student[name] + (1 - decay) * theirs
        torch.testing.assert_close(mine, expected, msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_classifiers_are_apart_or_one(tied):
    method = build(f"method.tie_classifier={tied}")
    for step in range(5):
        learn(method, Progress(step, 2, 20))
    same = equal(method.segmenter, method.assistant)
    assert same["decoder.classifier.weight"] == same["decoder.classifier.bias"] == tied
    assert not same["decoder.fuse.weight"]


@pytest.mark.parametrize("rate", ["scheduled", "constant"])
def test_the_rate_of_the_assistant(rate):
    method = build(f"method.assistant_lr={rate}")
    optimizer = build_optimizer(method, apply_overrides(Config(), TINY).optim)
    constant = {id(x) for group in optimizer.param_groups if group["constant"] for x in group["params"]}
    assert constant == ({id(x) for x in method.assistant.parameters()} if rate == "constant" else set())


def test_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, confidence = torch.randn(1, 3, 2, 3, dtype=torch.float64), torch.rand(1, 2, 3, dtype=torch.float64)
    target = torch.tensor([[[0, 1, 2], [1, IGNORE, 0]]])
    keep = torch.tensor([[[True, False, True], [True, True, True]]])
    over = torch.tensor([[[True, True, True], [True, True, False]]])
    total = weight = 0.0
    for row in range(2):
        for column in range(3):
            if not over[0, row, column]:
                continue
            kept = keep[0, row, column]
            weight += float(1 + confidence[0, row, column]) if kept else 1
            if kept and target[0, row, column] != IGNORE:
                own = logits[0, :, row, column].log_softmax(0)[target[0, row, column]]
                total -= float((1 + confidence[0, row, column]) * own)
    term = weighted_cross_entropy(pixels(logits), target, confidence, keep, over)
    assert float(term.mean()) == pytest.approx(total / weight, rel=1e-12)
