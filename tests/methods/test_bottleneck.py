"""The bottleneck in the steps of methods with labelled and unlabelled images in one pass."""

import pytest
import torch
import torch.nn.functional as F

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import joint_methods
from allspark.config.schema import Config
from allspark.methods import build_method
from tests.conftest import TINY
from tests.helpers import batch_of

STILL = ["model.decoder_dropout=0", "model.bottleneck_dropout=0"]


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, *STILL, *changes]), 5)


def step(method, number=0):
    """A step on a batch of 2 labelled and 3 unlabelled images, which is the same each time."""
    torch.manual_seed(1)
    batch = batch_of(method.views, 2, 3)
    return batch, method(batch, Progress(number, 1, 4))


@pytest.mark.parametrize("name", [name for name in joint_methods() if name != "allspark"])
def test_a_shut_gate_changes_no_step(name):
    """Losses and the gradients of all other parts are those without a bottleneck, in training mode."""
    still = ["method.correlation_dropout=0"] if name == "corrmatch" else []
    gated, plain = (
        build(f"method.name={name}", f"model.bottleneck={kind}", "model.bottleneck_gate=true", *still)
        for kind in ("allspark", "none")
    )
    plain.load_state_dict(gated.state_dict(), strict=False)  # heads of its own are drawn after the bottleneck
    for method in (gated, plain):
        method.begin()
    (_, one), (_, other) = step(gated), step(plain)
    assert one.loss == other.loss
    one.loss.backward()
    other.loss.backward()
    gradients = {name: parameter.grad for name, parameter in gated.segmenter.named_parameters()}
    for name, parameter in plain.segmenter.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name
    assert gated.segmenter.bottleneck.gate.grad.any()


@pytest.mark.parametrize("name", list(joint_methods()))
def test_labelled_and_unlabelled_images_meet_once_a_step(name):
    method = build(f"method.name={name}", "model.bottleneck=allspark", "model.bottleneck_warmup_epochs=1")
    method.begin()
    met = []
    bottleneck = method.segmenter.bottleneck
    bottleneck.register_forward_pre_hook(lambda module, inputs: met.append((len(inputs[0]), inputs[1])))
    for number in range(2):
        step(method, number)
        method.after_step(Progress(number, 1, 4))
    guided = [(images, guide) for images, guide in met if guide is not None]
    assert [guide.num_labeled for _, guide in guided] == [2, 2]
    assert [guide.read_memory for _, guide in guided] == [False, True]
    for images, guide in guided:
        assert len(guide.class_scores) == images - 2 and images >= 5
        assert not guide.class_scores.requires_grad
    assert int(method.memory.writes) == 2


def test_the_teacher_guides_and_follows_gate_and_memory():
    changes = ["model.bottleneck=allspark", "model.bottleneck_gate=true", "method.cutmix=0"]
    method = build("method.name=fixmatch", *changes)
    method.begin()
    with torch.no_grad():
        for parameter in method.segmenter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    teacher, student = method.deployed, method.segmenter
    guides = []
    student.bottleneck.register_forward_pre_hook(lambda module, inputs: guides.append(inputs[1]))
    batch, output = step(method)
    grid = student.encoder.grid((64, 96))
    with torch.no_grad():
        expected = F.interpolate(teacher(batch.unlabeled.weak), grid, mode="bilinear", align_corners=False)
        wrong = F.interpolate(student.eval()(batch.unlabeled.weak), grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(guides[0].class_scores, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wrong, expected, rtol=1e-2)

    output.loss.backward()
    before = teacher.bottleneck.gate.clone()
    method.after_step(Progress(3, 1, 4))  # decay 1 - 1 / 4
    torch.testing.assert_close(teacher.bottleneck.gate, 0.75 * before + 0.25 * student.bottleneck.gate.detach())
    for name, buffer in student.bottleneck.memory.named_buffers():
        assert torch.equal(teacher.bottleneck.memory.get_buffer(name), buffer), name
