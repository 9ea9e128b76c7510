"""A hierarchy of classes, and labels that are revised by it."""

import itertools
import math

import pytest
import torch

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods import build_method
from allspark.methods.hierarchy import classes_below
from allspark.methods.logicdiag import diagnosed, parents_loss
from tests.conftest import TINY
from tests.helpers import batch_of, pixels

CLASSES = ("ground", "cat", "dog", "car", "bus")
TREE = {"living": ["animal"], "animal": ["cat", "dog"], "vehicle": ["car", "bus"]}
BELOW = [[1, 2], [1, 2], [3, 4]]
TWO = "method.hierarchy={animal: [cat, dog], vehicle: [car, bus]}"


def build(*changes):
    torch.manual_seed(0)
    method = build_method(apply_overrides(Config(), [*TINY, "method.name=logicdiag", *changes]), 5)
    method.name_classes(CLASSES)
    return method


def members():
    rows = torch.zeros(3, 5, dtype=torch.float64)
    for row, below in zip(rows, BELOW, strict=True):
        row[below] = 1
    return rows


def test_classes_below_parents():
    assert classes_below(TREE, CLASSES) == BELOW


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "name what is above"),
        ({"animal": ["cat", "cow"]}, "no class and no parent 'cow'"),
        ({"cat": ["dog"]}, "cat is a class"),
        ({"animal": ["cat"], "pet": ["cat", "dog"]}, "cat has two places"),
        ({"one": ["other", "cat"], "other": ["one"]}, "above itself"),
        ({"animal": []}, "no class below animal"),
    ],
)
def test_a_hierarchy_that_is_none_is_refused_in_one_line(tree, message):
    with pytest.raises(ConfigError, match=message) as caught:
        classes_below(tree, CLASSES)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("method.hierarchy: ")


def test_a_hierarchy_can_be_a_file(tmp_path):
    file = tmp_path / "tree.yaml"
    file.write_text("animal: [cat, dog]\nvehicle: [car, bus]\n")
    other = apply_overrides(Config(), ["method.name=logicdiag", f"method.hierarchy={file}"])
    assert other == apply_overrides(Config(), ["method.name=logicdiag", TWO])
    with pytest.raises(ConfigError, match="no file"):
        apply_overrides(Config(), ["method.name=logicdiag", f"method.hierarchy={tmp_path / 'none.yaml'}"])


def consistent(state):
    """Whether truth values of five classes, then of three parents, keep to the rules: each one, written out."""
    classes, (living, animal, vehicle) = state[:5], state[5:]
    ground, cat, dog, car, bus = classes
    composition = [not cat or animal, not dog or animal, not car or vehicle, not bus or vehicle, not animal or living]
    decomposition = [not living or animal, not animal or cat or dog, not vehicle or car or bus, any(classes)]
    exclusion = [not (a and b) for a, b in itertools.combinations(classes, 2)]
    exclusion += [not (living and vehicle), not (ground and living), not (ground and vehicle)]
    return all([*composition, *decomposition, *exclusion])


def test_the_label_is_that_of_the_likeliest_state_that_keeps_to_the_rules():
    """Of all truth values of classes and parents, by the product of what each is given."""
    torch.manual_seed(0)
    scores, parents = torch.randn(1, 5, 4, 5).double() * 2, torch.randn(1, 3, 4, 5).double() * 2
    states = [state for state in itertools.product([False, True], repeat=8) if consistent(state)]
    assert len(states) == 5
    ours = diagnosed(pixels(scores), pixels(parents), members())
    likelihood, labels = ours.best()
    conflicts = 0
    for y, x in itertools.product(range(4), range(5)):
        p, q = scores[0, :, y, x].softmax(0).tolist(), parents[0, :, y, x].sigmoid().tolist()
        found = {}
        for state in states:
            chosen = state[:5].index(True)
            found[chosen] = p[chosen] * math.prod(b if a else 1 - b for a, b in zip(state[5:], q, strict=True))
        best = max(found, key=found.get)
        assert int(labels[0, y, x]) == best
        assert float(likelihood[0, y, x]) == pytest.approx(found[best] / sum(found.values()), rel=1e-10)
        conflicts += best != p.index(max(p))
    assert conflicts > 2


def test_without_a_conflict_no_label_is_revised():
    """Parents that are those of the best class, each believed by more than a half."""
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 6, 6).double()
    own = members().T[scores.argmax(1)].movedim(-1, 1)  # (2, 3, 6, 6)
    parents = (torch.rand(own.shape) + 0.01) * (2 * own - 1)
    assert torch.equal(diagnosed(pixels(scores), pixels(parents), members()).labels(), scores.argmax(1))


def test_parents_learn_from_the_masks():
    logits = torch.randn(2, 3, 4, 4).double()
    mask = torch.randint(0, 5, (2, 4, 4))
    mask[0, 0] = IGNORE
    term = parents_loss(pixels(logits), mask, members())
    total = 0.0
    for b, y, x in (mask != IGNORE).nonzero().tolist():
        for parent, below in enumerate(BELOW):
            p = float(logits[b, parent, y, x].sigmoid())
            total -= math.log(p if int(mask[b, y, x]) in below else 1 - p) / 3
    assert float(term.total) == pytest.approx(total, rel=1e-10) and int(term.count) == 28


def test_a_step_revises_labels_and_its_teacher_follows():
    method = build(TWO)
    assert method.members.tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    method.begin()
    method.parents_teacher.network.bias.data[1] = 40.0  # all is a vehicle
    batch = batch_of(method.views, size=(64, 64))
    output = method(batch, Progress(3, 1, 10))
    output.loss.backward()
    assert method.parents.weight.grad.any()
    assert output.class_pixels["pseudo"][:3].sum() == 0 and output.metrics["revised"] > 0
    method.after_step(Progress(3, 1, 10))
    assert float(method.parents_teacher.network.bias[1]) == pytest.approx(0.75 * 40, rel=0.02)
