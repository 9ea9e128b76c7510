"""Steps of several weight updates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from allspark.batch import Progress, StepOutput
from allspark.config import methods as settings
from allspark.config.files import apply_overrides
from allspark.engine.learner import Learner
from allspark.engine.scalars import GRAD_NORM
from allspark.methods.base import Method
from allspark.models.segmenter import build_segmenter
from allspark.runtime.devices import start_processes
from tests.helpers import SUPERVISED, batch_of

PROGRESS = Progress(3, 10, 10)


class Two(Method):
    """Two networks, each with an update of its own."""

    settings = settings.Supervised
    views = SUPERVISED
    phases = 2

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.second = build()
        self.register_buffer("passes", torch.zeros(2))
        self.done, self.broken, self.resting = [], None, ()

    def networks(self):
        return self.segmenter, self.second

    def phases_of(self, progress):
        return [phase for phase in range(2) if phase not in self.resting]

    def forward(self, batch, progress, phase):
        self.passes[phase] += 1
        loss = self.labeled_loss(self.networks()[phase].logits(batch.labeled.image), batch.labeled.mask)
        if phase == self.broken:
            loss = replace(loss, total=loss.total * math.nan)
        return StepOutput({f"labeled_{phase}": loss}, {f"metric_{phase}": torch.tensor(float(phase))})

    def after_phase(self, phase, progress):
        self.done.append(phase)

    def after_step(self, progress):
        self.done.append("step")


def learner_of(config, *changes, accumulate=1):
    config = apply_overrides(config, changes)
    torch.manual_seed(0)
    method = Two(settings.Supervised(), lambda: build_segmenter(config.model, 5, config.data.crop))
    return Learner(method, config.optim, config.train, start_processes(config.train, accumulate), 10)


@pytest.fixture
def plain(tiny_config):
    return apply_overrides(tiny_config, ["method.name=supervised", "model.bottleneck=none"])


def batch():
    torch.manual_seed(1)
    return batch_of(SUPERVISED, size=(64, 64))


def weights(network):
    return {name: x.detach().clone() for name, x in network.named_parameters()}


def same(network, before):
    return all(torch.equal(x, before[name]) for name, x in network.named_parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_phase_updates_what_has_a_gradient(plain, optimizer):
    """And nothing else: a weight without gradient does not decay either."""
    learner = learner_of(plain, f"optim.name={optimizer}", "optim.weight_decay=0.1")
    method, seen = learner.method, []
    before = [weights(network) for network in method.networks()]
    method.after_phase = lambda phase, progress: seen.append(
        [same(*x) for x in zip(method.networks(), before, strict=True)]
    )
    (scalars,) = learner.step([batch()], PROGRESS, print)
    assert seen == [[False, True], [False, False]] and method.done == ["step"]
    row = dict(zip(scalars.names, scalars.values.tolist(), strict=True))
    assert list(row) == ["loss", "loss_labeled_0", "metric_0", "loss_labeled_1", "metric_1", GRAD_NORM]
    assert row["loss"] == pytest.approx(row["loss_labeled_0"] + row["loss_labeled_1"])
    assert row["metric_1"] == 1


def test_norms_are_those_of_the_whole_gradient(plain):
    learner = learner_of(plain, "model.decoder_dropout=0")
    norms = []
    for network in learner.method.networks():
        loss = learner.method.labeled_loss(network.logits(batch().labeled.image), batch().labeled.mask).mean()
        norms.append(sum(x.square().sum() for x in torch.autograd.grad(loss, list(network.parameters()))))
    (scalars,) = learner.step([batch()], PROGRESS, print)
    assert float(scalars.values[-1]) == pytest.approx(float(sum(norms).sqrt()), rel=1e-5)


def test_each_phase_is_clipped_by_itself(plain):
    """With SGD's first update, of lr times the gradient, the change has the norm lr * clip_norm in each."""
    learner = learner_of(plain, "optim.clip_norm=0.01", "optim.weight_decay=0", "optim.head_multiplier=1")
    before = [weights(network) for network in learner.method.networks()]
    learner.step([batch()], PROGRESS, print)
    for network, old in zip(learner.method.networks(), before, strict=True):
        changes = [x.detach() - old[name] for name, x in network.named_parameters()]
        norm = float(torch.stack([x.norm() for x in changes]).norm())
        assert norm == pytest.approx(0.01 * learner.lr, rel=1e-2)


def test_micro_batches_pass_phase_by_phase(plain):
    learner = learner_of(plain, accumulate=2)
    scalars = learner.step([batch(), batch()], PROGRESS, print)
    assert [GRAD_NORM in one.names for one in scalars] == [False, True]
    assert learner.method.passes.tolist() == [2, 2] and learner.method.done == [0, 1, "step"]


def test_a_phase_may_rest(plain):
    learner = learner_of(plain)
    learner.method.resting = (0,)
    before = weights(learner.method.segmenter)
    (scalars,) = learner.step([batch()], PROGRESS, print)
    assert same(learner.method.segmenter, before) and learner.method.done == [1, "step"]
    assert scalars.names == ("loss", "loss_labeled_1", "metric_1", GRAD_NORM)


@pytest.mark.parametrize(("broken", "done"), [(0, []), (1, [0])])
def test_a_phase_that_is_not_finite_ends_the_step(plain, broken, done):
    """What came before it stays; what it did to buffers is taken back."""
    learner = learner_of(plain, "train.on_nan=skip")
    method, said = learner.method, []
    method.broken = broken
    before = [weights(network) for network in method.networks()]
    assert learner.step([batch()], PROGRESS, said.append) == [] and "skipped: step 4, whose loss" in said[0]
    assert method.done == done and method.passes.tolist() == [float(phase in done) for phase in (0, 1)]
    assert [same(*x) for x in zip(method.networks(), before, strict=True)] == [0 not in done, True]


def test_a_rate_that_is_not_scheduled(plain):
    learner = learner_of(plain)
    method = learner.method
    method.unscheduled = method.second.parameters
    learner = Learner(
        method, apply_overrides(plain, ["optim.lr=0.2"]).optim, plain.train, start_processes(plain.train, 1), 10
    )
    learner.step([batch()], Progress(9, 1, 10), print)
    rates = {id(x): group["lr"] for group in learner.optimizer.param_groups for x in group["params"]}
    assert {rates[id(x)] for x in method.second.encoder.parameters()} == {0.2}
    (scheduled,) = {rates[id(x)] for x in method.segmenter.encoder.parameters()}
    assert scheduled == pytest.approx(0.2 * 0.1**0.9) == learner.lr
