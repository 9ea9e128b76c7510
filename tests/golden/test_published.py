"""Equal to the published implementation, in float64 (arrays: see README.md here)."""

import pytest
import torch

from allspark.batch import LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.config.schema import Config
from allspark.engine.optim import build_optimizer, schedule, set_lr
from allspark.methods.allspark import AllSpark
from allspark.models.allspark import AllSparkBottleneck, Guide
from allspark.models.decoders import SegformerHead
from allspark.models.encoders import published_encoder
from allspark.models.published import BOTTLENECK_NAMES, HEAD_NAMES
from allspark.models.segmenter import Segmenter
from tests.golden.arrays import Arrays

RTOL = 1e-9
# Some gradients are zero in exact arithmetic (a bias before batch norm, a key bias before softmax).
ATOL = 1e-13


def close(ours, theirs, atol=ATOL):
    torch.testing.assert_close(ours, theirs, rtol=RTOL, atol=atol)


def test_bottleneck_over_four_steps():
    arrays = Arrays("bottleneck")
    module = AllSparkBottleneck.from_reference(arrays.part("state."), dropout=0.0).train()
    for step in range(4):
        get = arrays.part(f"step{step}.").__getitem__
        features = get("features").requires_grad_()
        out = module(features, Guide(2, get("logits_u"), bool(get("use_memory"))))
        close(out, get("out"))
        module.zero_grad()
        out.backward(get("cotangent"))
        close(features.grad, get("grad.features"))
        for name, parameter in module.named_parameters():
            close(parameter.grad, get(f"grad.{BOTTLENECK_NAMES[name]}"))
        close(module.memory.channels, get("memory"))
        assert module.memory.cursor.tolist() == get("pointer").tolist()
    close(module.eval()(arrays["eval.features"]), arrays["eval.out"])


def test_head_in_eval_and_train():
    arrays = Arrays("segformer_head")
    head = SegformerHead.from_reference(arrays.part("state."), dropout=0.0)
    features = [arrays[f"c{i}"].requires_grad_() for i in range(1, 5)]
    close(head.eval()(features), arrays["eval.out"])
    out = head.train()(features)
    close(out, arrays["train.out"])
    out.backward(arrays["train.cotangent"])
    for i, feature in enumerate(features):
        close(feature.grad, arrays[f"train.grad.c{i + 1}"])
    for name, parameter in head.named_parameters():
        close(parameter.grad, arrays[f"train.grad.{HEAD_NAMES[name]}"], atol=1e-12)
    close(head.norm.running_mean, arrays["after.running_mean"])
    close(head.norm.running_var, arrays["after.running_var"])


def test_encoder_maps():
    arrays = Arrays("mit_backbone")
    encoder = published_encoder(arrays.part("state.")).eval()
    for i, feature in enumerate(encoder(arrays["image"])):
        close(feature, arrays[f"c{i + 1}"])
    assert encoder.grid((97, 129)) == tuple(arrays["c4"].shape[2:])


@pytest.fixture
def method():
    """AllSpark's training step around the published network."""
    network = Segmenter.from_reference(Arrays("train_steps").part("state."), dropout=0.0, drop_path=0.0)
    network.bottleneck.warmup_epochs = 1
    return AllSpark(AllSpark.settings(), lambda: network).train()


def test_four_training_steps(method):
    arrays = Arrays("train_steps")
    lr, multiplier = float(arrays["lr"]), float(arrays["lr_multiplier"])
    config = Config.model_validate({"optim": {"lr": lr, "head_multiplier": multiplier}})
    optimizer = build_optimizer(method, config.optim)
    total, warmup = int(arrays["total_steps"]), int(arrays["warmup_steps"])
    for step in range(total):
        # The published schedule is one step late.
        factor = schedule(max(step - 1, 0), total, config.optim)
        set_lr(optimizer, config.optim, factor)
        close(torch.tensor([g["lr"] for g in optimizer.param_groups], dtype=torch.float64), arrays["lr_per_step"][step])
        image_l, image_u, mask_l = (arrays[f"step{step}.{name}"] for name in ("image_l", "image_u", "mask_l"))
        batch = TrainBatch(LabeledBatch(image_l.double(), mask_l.long()), UnlabeledBatch(image_u.double()))
        output = method(batch, Progress(step, warmup, total))
        losses = [*(output.terms[name].mean() for name in ("labeled", "unlabeled")), output.loss]
        close(torch.stack(losses).detach(), arrays["losses"][step])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    final = Segmenter.from_reference(arrays.part("final."), dropout=0.0, drop_path=0.0)
    ours = method.segmenter.state_dict()
    for name, value in final.state_dict().items():
        # The published pointer is ours modulo the slots, compared below; the age of channels is not published.
        if name.removeprefix("bottleneck.memory.") not in {"written", "born", "writes"}:
            close(ours[name], value)
    assert torch.equal(method.segmenter.bottleneck.memory.cursor, final.bottleneck.memory.cursor)
    close(method.segmenter.eval()(arrays["eval.image"].double()), arrays["eval.logits"])
