"""Contrastive methods equal their official code's, in float64 (arrays: see README.md here)."""

from __future__ import annotations

import pytest
import torch

from allspark.kernels.logits import Logits
from allspark.methods import density, dgcl, pixel_roles, u2pl
from allspark.methods.contrast import at_grid
from allspark.methods.dgcl import DGCL
from allspark.methods.filters import percentile
from allspark.methods.losses import reliable_cross_entropy
from allspark.methods.u2pl import U2PL
from tests.golden.arrays import Arrays
from tests.golden.test_peers import Playback, close, with_grad
from tests.helpers import pixels


@pytest.mark.parametrize("percent", [80, 95, 100])
def test_loss_of_reliable_pixels(percent):
    """Their pixels without a label are all among those that the loss is multiplied by."""
    arrays = Arrays("peers/u2pl_unsup")
    (student,) = with_grad(arrays, "student_logits")
    y = arrays["y"]
    entropy = pixels(arrays["teacher_logits"]).entropy()
    keep = entropy < percentile(entropy, y != 255, percent / 100)
    assert torch.equal(y.where(keep, 255), arrays[f"out_target_p{percent}"])
    loss = reliable_cross_entropy(pixels(student), y, keep, torch.ones_like(keep)).mean()
    close(loss, arrays[f"out_loss_p{percent}"])
    loss.backward()
    close(student.grad, arrays[f"grad_p{percent}"])


class Small(Playback):
    hidden_channels = 4


def draws_of(arrays, monkeypatch, compared, shape):
    """Have the method draw what was drawn there, class by class of those that are compared."""
    anchors, negatives = torch.zeros(5, shape[0]).double(), torch.zeros(5, shape[0] * shape[1]).double()
    numbers = iter(range(int(arrays["n_draws"])))
    for index in compared:
        anchors[index] = arrays[f"draw_{next(numbers):02d}"]
        negatives[index] = arrays[f"draw_{next(numbers):02d}"]
    assert next(numbers, None) is None
    drawn = iter([anchors, negatives])
    monkeypatch.setattr(u2pl, "uniform", lambda *_: next(drawn))
    monkeypatch.setattr(u2pl, "places", lambda draws, count: draws.long())


@pytest.mark.parametrize(
    ("name", "rule", "compared"),
    [("contiguous", "paper", (0, 1, 2)), ("contiguous", "code", (0, 1, 2)), ("gap", "code", (0, 2))],
)
def test_contrast_of_u2pl(name, rule, compared, monkeypatch):
    """Where the classes present are the first ones, paper and code have the same banks for the roles of the code."""
    arrays = Arrays(f"peers/u2pl_contrast_{name}")
    before = arrays.part("bank_before_").values()
    settings = U2PL.settings(
        anchors=int(arrays["num_queries"]),
        negatives=int(arrays["num_negatives"]),
        anchor_confidence=float(arrays["delta_p"]),
        temperature=float(arrays["temperature"]),
        ranks=(int(arrays["low_rank"]), int(arrays["high_rank"])),
        bank_sizes=tuple(arrays["queue_size"][:2].tolist()),
        projection_channels=6,
        contrast_rule=rule,
    )
    method = U2PL(settings, Small)
    method.bank.double()
    for index, rows in enumerate(before):
        members = torch.arange(5)[:, None] == torch.full((len(rows),), index)
        method.bank.push(rows, members)
    draws_of(arrays, monkeypatch, compared, (settings.anchors, settings.negatives))

    scores = Logits(arrays["teacher_logits_small"], (12, 12), (12, 12))
    entropy = pixels(arrays["teacher_logits_u_large"]).entropy()
    monkeypatch.setattr(Logits, "entropy", lambda _: entropy)
    target = torch.cat([arrays["y_l"], arrays["y_u"]])
    valid = arrays["y_u"] != 255
    low, high = pixel_roles.entropy_masks(scores, target, valid, float(arrays["alpha_t"]) / 100)
    assert torch.equal(low, arrays["out_low_mask"][:, 0].bool())
    assert torch.equal(high, arrays["out_high_mask"][:, 0].bool())
    grid = at_grid(target, scores, 255)
    one_hot = torch.cat([pixel_roles._heaped(x, 5) for x in grid.split(2)]).permute(0, 3, 1, 2)
    assert torch.equal(one_hot, torch.cat([arrays["out_onehot_l"], arrays["out_onehot_u"]]).bool())
    roles = pixel_roles.pixel_roles(grid, low, high, scores, 2, settings.model_copy(update={"contrast_rule": "code"}))
    assert torch.equal(roles.keys.sum((0, 1, 2)), arrays["out_new_keys"])

    (student,) = with_grad(arrays, "rep_student")
    loss = method.contrast(student, arrays["rep_teacher"], roles, 2, 0).mean()
    close(loss, arrays["out_loss"])
    loss.backward()
    close(student.grad, arrays["grad_rep"])
    for index, rows in enumerate(arrays.part("bank_after_").values()):
        place = torch.arange(len(rows))[None]
        assert int(method.bank.count[index]) == len(rows)
        assert torch.equal(method.bank.at(place, torch.tensor([index]))[0], rows)


def test_density_of_dgcl():
    arrays = Arrays("peers/dgcl_density")
    close(density.density(arrays["feat"], arrays["memo"], arrays["k"].tolist()), arrays["density_norm1_dot"])


def in_order(shape, step, purpose, device):
    """Draws that leave everything where it is."""
    return torch.arange(shape[0], dtype=torch.float64)


def test_bank_of_dgcl(monkeypatch):
    """The third update finds a class with more than a thousand rows; their list has the newest first."""
    arrays = Arrays("peers/dgcl_memory_update")
    settings = DGCL.settings(bank_size=1200, neighbours=(2, 4, 8), projection_channels=2)

    class Narrow(Small):
        hidden_channels, num_classes = 3, 2

    method = DGCL(settings, Narrow)
    method.bank.double()
    monkeypatch.setattr(dgcl, "uniform", in_order)
    before = arrays["u3_mem0_before"]
    new = len(arrays["u3_mem0_head"])
    old = torch.cat([before.flip(0), torch.zeros(len(before), 3)], 1)  # as after two updates, the second of 20 rows
    method.bank.push(old, torch.tensor([[True], [False]]).expand(-1, len(old)))
    method.remember(method.gathered(arrays["u3_fts"], arrays["u3_rep"], arrays["u3_lab"], 1), 0)
    assert method.bank.count.tolist() == [len(before) + new, 18] and new == 18
    place = torch.arange(new)[None]
    rows = method.bank.at(len(before) + place, torch.tensor([0]))[0]
    assert torch.equal(rows[:, :3], arrays["u3_mem0_head"]) and torch.equal(rows[:, 3:5], arrays["u3_proj0_head"])
    close(rows[:, 5], arrays["u3_density0_head"])
    assert torch.equal(method.bank.at(place, torch.tensor([1]))[0, :, 5], arrays["u3_density1_head"])


@pytest.mark.parametrize(("dense", "anchors"), [(5, 10), (50, 200)])
def test_loss_of_dgcl(dense, anchors):
    arrays = Arrays("peers/dgcl_loss")

    class Narrow(Small):
        hidden_channels, num_classes = 6, 3

    settings = DGCL.settings(
        bank_size=60, neighbours=tuple(arrays["k_den"].tolist()), dense=dense, anchors=anchors, projection_channels=5
    )
    method = DGCL(settings, Narrow)
    method.bank.double()
    stored = torch.cat([arrays["mem_fts"], arrays["mem_proj"], arrays["mem_density"][..., None]], 2)  # (k, 60, 12)
    members = torch.eye(3, dtype=torch.bool)[..., None].expand(-1, -1, 60).flatten(1)
    (rep,) = with_grad(arrays, "rep")
    seen = method.gathered(arrays["fts"], rep.detach(), arrays["label"], 1)
    assert method.contrast(rep, seen, 0).mean() == 0  # the bank is empty
    method.bank.push(stored.flatten(0, 1), members)
    loss = method.contrast(rep, seen, 0).mean()
    close(loss, arrays[f"loss_hi{dense}_lo{anchors}"])
    loss.backward()
    close(rep.grad, arrays[f"grad_hi{dense}_lo{anchors}"])
    alone = method.gathered(arrays["fts"], rep.detach(), torch.zeros_like(arrays["label"]), 1)
    nothing = method.contrast(rep, alone, 0).mean()
    assert arrays["loss_only_class0_is_none"] and nothing == 0
