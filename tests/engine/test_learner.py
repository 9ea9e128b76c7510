"""One update, whatever it is made of: micro-batches, optimisers, teachers, steps that are skipped."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from allspark.batch import IGNORE, Progress, TrainBatch
from allspark.config.files import apply_overrides
from allspark.engine.learner import Learner
from allspark.methods import build_method
from allspark.runtime.devices import start_processes
from tests.helpers import batch_of, choose, each_method

START = Progress(0, 10, 10)
# Of two micro-batches of two, one batch whose reversed order pairs the same images; augseg pairs neighbours.
ORDER, NEIGHBOURS = torch.tensor([0, 2, 3, 1]), torch.tensor([0, 1, 2, 3])


def still(method):
    """No dropout and no batch statistics: what is left must not depend on how an update is cut."""
    for part in method.modules():
        for name in ("dropout", "feature_dropout", "drop_prob"):
            if isinstance(getattr(part, name, None), bool | float):
                setattr(part, name, 0)
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
            part.train = lambda mode=True, part=part: part  # for passes of teachers in training mode


def learner_of(config, accumulate=1):
    torch.manual_seed(0)
    method = build_method(config, 5).double()
    still(method)
    accelerator = start_processes(config.train, accumulate)
    return Learner(method, config.optim, config.train, accelerator, 10)


def merged(parts, order):
    """Two micro-batches as one batch."""

    def join(items):
        if items[0] is None:
            return None
        found = {}
        for field in fields(items[0]):
            values = [getattr(item, field.name) for item in items]
            if isinstance(values[0], torch.Tensor):
                axis = 1 if field.name in ("strong", "boxes") else 0
                values = torch.cat(values, axis).index_select(axis, order)
            else:
                values = values[0]
            found[field.name] = values
        return replace(items[0], **found)

    return TrainBatch(*(join([getattr(part, name) for part in parts]) for name in ("labeled", "unlabeled")),
                      partner=join([part.partner for part in parts]),
                      pseudo=join([part.pseudo for part in parts]))  # fmt: skip


# Memory, banks and class confidence are written, and read, by one micro-batch after the other; fpl scales each loss,
# and each is what semicvt's teacher norms, and where pc2seg finds its pairs.
IN_TURN = {"allspark", "ael", "fpl", "fpl-ael", "u2pl", "dgcl", "pc2seg", "semicvt"}


@pytest.mark.parametrize("name", each_method(*IN_TURN))
def test_micro_batches_give_the_update_of_one_batch(tiny_config, name):
    """Counts differ: one of them has few labels and much padding."""
    config = apply_overrides(tiny_config, [*choose(name), "train.precision=fp64", "optim.lr=0.1"])
    if hasattr(config.method, "confidence"):
        config = apply_overrides(config, ["method.confidence=0.25"])
    if hasattr(config.method, "confidence_weight"):  # the other is a number of each micro-batch
        config = apply_overrides(config, ["method.confidence_weight=pixel"])
    if name == "mkd":  # neighbours differ, and statistics of one micro-batch change the next one's loss
        config = apply_overrides(config, ["method.cutmix=false", "method.augmentation=0"])
    if name == "pseudoseg":  # all of the crop otherwise
        config = apply_overrides(config, ["method.cutout=20"])
    torch.manual_seed(5)
    views = build_method(config, 5).views
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    narrow = valid.clone()
    narrow[:, :, 20:] = False
    parts = [batch_of(views, size=(64, 64), valid=some, dtype=torch.float64) for some in (valid, narrow)]
    parts[1].labeled.mask[:, 10:] = IGNORE
    ends = []
    order = NEIGHBOURS if name == "augseg" else ORDER
    for update in (parts, [merged(parts, order)]):
        learner = learner_of(config, len(update))
        scalars = learner.step(update, START, print)
        loss = sum(float(one.values[0]) for one in scalars) / len(update)
        ends.append((loss, {key: x.clone() for key, x in learner.method.state_dict().items()}))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-12)
    for key, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][key], rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", each_method())
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_all_state_of_method_and_optimiser_is_saved(tiny_config, name, optimizer):
    config = apply_overrides(tiny_config, [*choose(name), f"optim.name={optimizer}"])
    torch.manual_seed(0)
    method = build_method(config, 5)
    learner = Learner(method, config.optim, config.train, start_processes(config.train, 1), 10)
    for progress in (START, Progress(9, 1, 10)):  # while a warm-up lasts, and after
        learner.step([batch_of(method.views, size=(64, 64))], progress, print)
    saved = learner.tensors()
    state = {"sgd": {"momentum_buffer"}, "adamw": {"exp_avg", "exp_avg_sq", "step"}}[optimizer]
    trained = [key for key, x in method.named_parameters() if x.requires_grad]
    assert {key for key in saved if key.startswith("optim.")} == {f"optim.{s}.{key}" for s in state for key in trained}
    model = {key.removeprefix("model.") for key in saved if key.startswith("model.")}
    assert model == set(method.deployed.state_dict())
    rest = {id(x) for x in method.state_dict(keep_vars=True).values()}
    rest -= {id(x) for x in method.deployed.state_dict(keep_vars=True).values()}
    assert sum(key.startswith("method.") for key in saved) == len(rest)


def test_a_teacher_follows_updates_that_took_place_only(tiny_config, monkeypatch):
    config = apply_overrides(tiny_config, ["method.name=fixmatch", "train.on_nan=skip"])
    learner = learner_of(apply_overrides(config, ["train.precision=fp64"]))
    method = learner.method
    teacher = {key: x.clone() for key, x in method.teacher.state_dict().items()}
    batch = batch_of(method.views, size=(64, 64), dtype=torch.float64)
    broken = replace(batch, labeled=replace(batch.labeled, image=batch.labeled.image * float("nan")))
    said = []
    assert learner.step([broken], Progress(3, 10, 10), said.append) == [] and "skipped: step 4" in said[0]
    assert all(torch.equal(x, teacher[key]) for key, x in method.teacher.state_dict().items())
    assert learner.step([batch], Progress(4, 10, 10), said.append)
    decay = min(1 - 1 / 5, method.teacher.decay)
    for key, student in method.segmenter.named_parameters():
        expected = decay * teacher[f"network.{key}"] + (1 - decay) * student
        torch.testing.assert_close(method.teacher.state_dict()[f"network.{key}"], expected, rtol=1e-12, atol=1e-14)


def test_after_its_first_update_a_teacher_is_its_student(tiny_config):
    learner = learner_of(apply_overrides(tiny_config, ["method.name=fixmatch", "train.precision=fp64"]))
    batch = batch_of(learner.method.views, size=(64, 64), dtype=torch.float64)
    learner.step([batch], START, print)
    student, teacher = learner.method.segmenter.state_dict(), learner.method.teacher.network.state_dict()
    assert all(torch.equal(teacher[key], x) for key, x in student.items())
