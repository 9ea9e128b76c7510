"""Two teachers in turn, and the noise that their decoders are most sensitive to."""

from __future__ import annotations

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.methods import build_method
from allspark.methods.perturbations import adversarial_noise
from allspark.methods.ps_mt import best_classes
from tests.conftest import TINY
from tests.helpers import batch_of

CHANGES = ["method.name=ps-mt", "method.supervised_epochs=1.5", "method.confidence=0"]


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, *CHANGES, *changes]), 5)


def test_best_classes():
    torch.manual_seed(0)
    own, other = torch.randn(2, 1, 6, 2, 2)
    merged = best_classes(own, other, 2)
    for row in range(2):
        for column in range(2):
            best = own[0, :, row, column].argsort()[-2:].tolist()
            expected = [(own if k in best else other)[0, k, row, column] for k in range(6)]
            assert merged[0, :, row, column].tolist() == [float(x) for x in expected]
    assert torch.equal(best_classes(own, other, 9), own)


def test_in_the_warm_up_each_learns_by_itself():
    method = build()
    batch = batch_of(method.views, size=(64, 64))
    assert list(method.phases_of(Progress(2, 2, 20))) == [0, 1, 2] and list(method.phases_of(Progress(3, 2, 20))) == [0]
    for phase, network in enumerate(method.networks()):
        method.zero_grad()
        method(batch, Progress(2, 2, 20), phase).loss.backward()
        for other in method.networks():
            assert all((x.grad is not None) == (other is network) for x in other.parameters())


@pytest.mark.parametrize(("step", "core"), [(2, None), (3, 0), (4, 0), (5, 1), (6, 1), (7, 0)])
def test_teachers_follow_in_turn(step, core):
    """Epochs count from the end of the warm-up, here three steps; two steps are an epoch."""
    method = build()
    before = [{name: x.clone() for name, x in teacher.state_dict().items()} for teacher in method.teachers]
    method.after_step(Progress(step, 2, 20))
    student = method.segmenter.state_dict()
    for number, (teacher, old) in enumerate(zip(method.teachers, before, strict=True)):
        for name, x in teacher.state_dict().items():
            expected = 0.996 * old[name] + 0.004 * student[name] if number == core else old[name]
            if x.is_floating_point():
                torch.testing.assert_close(x, expected, msg=name)


def test_without_a_warm_up_teachers_start_as_the_student():
    method = build("method.supervised_epochs=0")
    method.begin()
    for teacher in method.teachers:
        assert all(torch.equal(x, teacher.state_dict()[name]) for name, x in method.segmenter.state_dict().items())


def test_teachers_learn_nothing_after_the_warm_up():
    method = build()
    method(batch_of(method.views, size=(64, 64)), Progress(9, 2, 20)).loss.backward()
    assert all(x.grad is None for teacher in method.teachers for x in teacher.parameters())
    assert all(x.grad is not None for x in method.segmenter.parameters())


def test_noise_has_its_norm_and_raises_the_divergence_and_leaves_no_trace():
    method = build()
    for teacher in method.teachers:
        teacher.double()
    state = {name: x.clone() for name, x in method.state_dict().items()}
    modes = [part.training for part in method.modules()]
    features = method.segmenter.double().encode(torch.randn(3, 3, 64, 64, dtype=torch.float64))
    noise = adversarial_noise(features, method.teachers, 2.0, 0.1)
    norms = torch.stack([x.flatten(1).norm(dim=1) for x in noise.maps]).norm(dim=0)
    torch.testing.assert_close(norms, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-2, atol=0)
    assert not any(x.requires_grad for x in noise.maps)
    assert [part.training for part in method.modules()] == modes
    assert all(x.grad is None for x in method.parameters())
    for name, x in method.state_dict().items():
        assert torch.equal(x, state[name].to(x.dtype)), name

    method.eval()

    @torch.no_grad()
    def divergence(noise):
        said = []
        for maps in (features.maps, [x + d for x, d in zip(features.maps, noise, strict=True)]):
            said.append(sum(teacher.decoder(maps) for teacher in method.teachers).div(2).log_softmax(1))
        return float((said[0].exp() * (said[0] - said[1])).sum())

    random = [torch.randn_like(x) for x in features.maps]
    lengths = torch.stack([x.flatten(1).norm(dim=1) for x in random]).norm(dim=0)
    random = [2 * x / lengths[:, None, None, None] for x in random]
    assert divergence(noise.maps) > 5 * divergence(random) > 0
