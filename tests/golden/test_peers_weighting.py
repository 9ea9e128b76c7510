"""AEL and FPL equal their official code, in float64 (arrays: see README.md here)."""

from __future__ import annotations

import pytest
import torch

from allspark.batch import Progress
from allspark.methods import ael, equalization
from allspark.methods.filters import class_means
from allspark.methods.fpl import FPL, FPLOnAEL, fuzzy_losses
from allspark.methods.mixing import mix
from tests.golden.arrays import Arrays
from tests.golden.test_peers import Playback, close, with_grad
from tests.helpers import pixels

START = Progress(0, 1, 1)


def playback(num_classes):
    return type("Played", (Playback,), {"num_classes": num_classes})


def float32(ours, theirs):
    """Their class confidence is a float32."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_class_confidence_of_ael():
    arrays = Arrays("peers/ael")
    method = ael.AEL(ael.AEL.settings(class_memory=float(arrays["momentum"])), playback(6))
    logits, mask = pixels(arrays["student_logits_l"]), arrays["y_l"]
    float32(class_means((-logits.losses(mask)).exp(), mask, mask != 255, 6)[0], arrays["out_class_conf"])
    for before, after in zip(arrays["bank_before"], arrays["out_bank_after"], strict=True):
        method.running.copy_(before)
        method.follow_classes(logits, mask)
        float32(method.running, after)


def test_probabilities_of_ael():
    arrays = Arrays("peers/ael")
    running, candidates = arrays["out_bank_after"][0], arrays["target_cat"]
    never = tuple(set(range(6)) - set(candidates.tolist()))
    close(equalization.paste_probability(running, never)[candidates], arrays["out_copy_probability"])
    close(equalization.box_probability(running), arrays["out_bank_class_probability"])


@pytest.mark.parametrize("sampling", [False, True])
def test_weighted_loss_of_ael(sampling, monkeypatch):
    arrays = Arrays("peers/ael")
    maps = arrays["uniform"]
    monkeypatch.setattr(ael, "uniform_map", lambda labels, _: maps.gather(0, labels))
    method = ael.AEL(ael.AEL.settings(sampling=sampling), playback(6))
    method.running.copy_(arrays["out_bank_after"][0])
    (student,) = with_grad(arrays, "student_logits")
    labels = arrays["teacher_label"]
    found = ael.Found(labels, arrays["teacher_conf"], labels != 255, torch.ones_like(labels).bool(), labels)
    loss = method.consistency(pixels(student), found, START).mean()
    close(loss, arrays[f"out_loss_sample{int(sampling)}"])
    loss.backward()
    close(student.grad, arrays[f"grad_sample{int(sampling)}"])


def test_which_images_hold_a_class_of_ael():
    arrays = Arrays("peers/ael")
    labels = arrays["bank_teacher_logits"].argmax(1)
    ours = equalization.holds(labels, torch.arange(6), float(arrays["area_thresh"]))
    assert torch.equal(ours, arrays["out_cutmix_bank"][:, arrays["bank_index"]].bool())


def test_copy_paste_of_ael():
    arrays = Arrays("peers/ael")
    image, mask = arrays["paste_x"], arrays["paste_y"]
    where = equalization.of_classes(arrays["paste_src_y"], arrays["paste_classes"].expand(2, -1))
    close(mix(image, arrays["paste_src_x"], where), arrays["out_paste_x"])
    assert torch.equal(mix(mask, arrays["paste_src_y"], where), arrays["out_paste_y"])


@pytest.mark.parametrize("kind", ["concave", "linear", "convex", "none"])
@pytest.mark.parametrize("mass", [0.9, 0.95])
@pytest.mark.parametrize(("method", "theirs"), [(FPL, "cps"), (FPLOnAEL, "ael")])
def test_fuzzy_positives(method, theirs, mass, kind):
    arrays = Arrays("peers/fpl_topk")
    settings = method.settings(positive_mass=mass, fuzziness=kind)
    (student,) = with_grad(arrays, "student_logits")
    losses = fuzzy_losses(pixels(student), arrays["teacher_logits"], settings)
    key = f"{theirs}_T{mass}_{kind}"
    close(losses, arrays[f"{key}_loss"] * arrays[f"{key}_weight"])
    losses.mean().backward()
    close(student.grad, arrays[f"{key}_grad_mean"])


@pytest.mark.parametrize("name", ["cons", "cons_sample"])
def test_weighted_loss_of_fpl_on_ael(name, monkeypatch):
    arrays = Arrays("peers/fpl_criteria")
    maps = arrays["cons_sample_uniform"]
    monkeypatch.setattr(ael, "uniform_map", lambda labels, _: maps.gather(0, labels))
    settings = FPLOnAEL.settings(sampling=name == "cons_sample", positive_mass=float(arrays["threshold"]))
    method = FPLOnAEL(settings, playback(7))
    method.running.copy_(arrays["class_criterion"])
    (student,) = with_grad(arrays, "student_logits")
    target = arrays["teacher_logits"]
    every = torch.ones_like(target[:, 0]).bool()
    found = ael.Found(target.argmax(1), arrays["conf"], every, every, target)
    loss = method.consistency(pixels(student), found, START).mean()
    close(loss, arrays[f"{name}_loss"])
    loss.backward()
    close(student.grad, arrays[f"{name}_grad"])


def test_class_confidence_of_fpl_on_ael():
    arrays = Arrays("peers/fpl_criteria")
    logits, mask = pixels(arrays["student_logits"]), arrays["gt"]
    ours, _ = class_means((-logits.losses(mask)).exp(), mask, mask != 255, 7)
    float32(ours, arrays["category_confidence"].double())


def test_cross_loss_of_fpl():
    arrays = Arrays("peers/fpl_criteria")
    settings = FPL.settings(positive_mass=float(arrays["threshold"]))
    logits = [pixels(arrays["student_logits"]), pixels(arrays["cps_s2"])]
    targets = [arrays["cps_t2"], arrays["teacher_logits"]]
    losses = FPL(settings, playback(7)).cross_losses(logits, targets)
    raw = [fuzzy_losses(one, target, settings) for one, target in zip(logits, reversed(targets), strict=True)]
    close(sum(x.mean() for x in raw), arrays["cps_raw"])
    close(sum(x.mean() for x in losses), arrays["cps_loss"])
    for ours, unscaled in zip(losses, raw, strict=True):
        close(ours, arrays["cps_balance"] * unscaled)
