"""A checkpoint whose checksum is right and whose content is not: one line, whatever it holds, whoever opens it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.engine.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from allspark.engine.import_published import import_published
from allspark.engine.run import begin_with, open_run
from allspark.engine.train import train
from allspark.errors import UserError
from allspark.methods import build_method
from tests.conftest import TINY
from tests.golden.arrays import Arrays

FEW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SHAPES = st.lists(st.integers(0, 5), max_size=4)
KINDS = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder):
    """A run of two steps, and what it was configured with."""
    changes = ["method.name=fixmatch", "model.bottleneck=allspark", "train.epochs=1", f"data.root={tiny_folder}"]
    config = apply_overrides(Config(), [*TINY, *changes])
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config, out)
    return out, config


def changed(checkpoint: Checkpoint, data: st.DataObject) -> Checkpoint:
    """The same, with a part of its description or a tensor gone, replaced or new."""
    meta, tensors = copy.deepcopy(checkpoint.meta), dict(checkpoint.tensors)
    if data.draw(st.booleans(), "a tensor"):
        name = data.draw(st.sampled_from([*tensors, "model.x", "optim.x", "optim.exp_avg.x", "rng.cpu.1"]), "name")
        if data.draw(st.booleans(), "gone"):
            tensors.pop(name, None)
        else:
            tensors[name] = torch.ones(data.draw(SHAPES, "shape")).to(data.draw(KINDS, "kind"))
        return Checkpoint(tensors, meta)
    table = meta
    while True:
        key = data.draw(st.sampled_from([*sorted(table), "x"]), "key")
        if not isinstance(table.get(key), dict) or not data.draw(st.booleans(), "deeper"):
            break
        table = table[key]
    if data.draw(st.booleans(), "gone"):
        table.pop(key, None)
    else:
        table[key] = data.draw(JSON, "value")
    return Checkpoint(tensors, meta)


def uses(run, config, out):
    """What opens a checkpoint; each does it, or says in one line why not."""
    method = build_method(config, 6)
    return (
        lambda: open_run(run, "last"),
        lambda: open_run(run, "last", "student"),
        lambda: begin_with(method, run),
        lambda: train(apply_overrides(config, ["train.epochs=2"]), run, resume=True),
    )


def attempt(use) -> bool:
    try:
        use()
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("number", range(4), ids=["open", "student", "begin", "resume"])
@settings(FEW, max_examples=40)
@given(data=st.data())
def test_what_a_checkpoint_holds(whole, tmp_path_factory, number, data):
    run, config = whole
    out = tmp_path_factory.mktemp("changed")
    checkpoint = changed(load_checkpoint(checkpoint_path(run, "last")), data)
    save_checkpoint(checkpoint_path(out, "last"), checkpoint.tensors, checkpoint.meta)
    attempt(uses(out, config, out)[number])


@pytest.mark.parametrize("number", range(3))
def test_what_is_unchanged_opens(whole, number):
    run, config = whole
    assert attempt(uses(run, config, run)[number])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of what is refused then
@settings(FEW, max_examples=60)
@given(data=st.data())
def test_published_files(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("published")
    state = Arrays("train_steps").part("state.")
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*sorted(state), "x"]), "name")
        if data.draw(st.booleans(), "gone"):
            state.pop(name, None)
        else:
            state[name] = torch.ones(data.draw(SHAPES, "shape")).to(data.draw(KINDS, "kind"))
    torch.save({"model": state}, out / "theirs.pth")
    attempt(lambda: import_published(out / "theirs.pth", 6, out / "run"))
