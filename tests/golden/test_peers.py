"""Steps of the peer methods equal their official code's, in float64 (arrays: see README.md here).

The networks are played back: what they say is in the arrays, what they are shown is compared.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from allspark.batch import LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.data.boxes import french_boxes
from allspark.kernels.logits import Logits
from allspark.methods import augseg
from allspark.methods.cps import CPS
from allspark.methods.cutmix_seg import CutMixSeg
from allspark.methods.fixmatch import FixMatch
from allspark.methods.losses import masked_cross_entropy
from allspark.methods.mixing import box_masks
from allspark.methods.perturbations import complementary_dropout, complementary_masks
from allspark.methods.unimatch import UniMatch
from allspark.methods.unimatch_v2 import UniMatchV2
from allspark.models.dpt import DPTHead
from allspark.models.segmenter import Features, Segmenter
from tests.golden.arrays import Arrays
from tests.helpers import pixels

START = Progress(0, 1, 1)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


class Playback(Segmenter):
    """A network that says what it is told to, and keeps what it was shown."""

    bottleneck = None
    num_classes = 5

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.answers, self.shown = [], []

    def logits(self, image, guide=None):
        self.shown.append(image)
        return pixels(self.answers.pop(0))

    def encode(self, image):
        self.shown.append(image)
        return Features((image,), tuple(image.shape[2:]), tuple(image.shape[2:]))

    def apply_bottleneck(self, features, guide=None):
        return features

    def decode(self, features):
        answer = self.answers.pop(0)
        assert len(features) == len(answer)
        return pixels(answer)


def boxes_of(masks):
    """(u, H, W) of any shape, as boxes of one pixel each: (u, r, 4)."""
    found = [mask.nonzero() for mask in masks.bool()]
    boxes = torch.zeros(len(masks), max(1, *map(len, found)), 4, dtype=torch.int64)
    for own, places in zip(boxes, found, strict=True):
        own[: len(places)] = torch.cat([places, places + 1], 1)
    assert torch.equal(box_masks(boxes, masks.shape[1:]), masks.bool())
    return boxes


def labeled(mask):
    return LabeledBatch(torch.zeros(len(mask), 3, *mask.shape[1:], dtype=torch.float64), mask.long())


def unlabeled(pad, strong=None, *boxes):
    weak = torch.zeros(len(pad), 3, *pad.shape[1:], dtype=torch.float64)
    drawn = [boxes_of(mask) for mask in boxes]
    width = max([len(box[0]) for box in drawn], default=0)
    padded = [torch.nn.functional.pad(box, (0, 0, 0, width - box.shape[1])) for box in drawn]
    return UnlabeledBatch(weak, pad == 0, (), strong, torch.stack(padded) if drawn else None)


def with_grad(arrays, *names):
    return [arrays[name].requires_grad_() for name in names]


def test_fixmatch():
    arrays = Arrays("peers/fixmatch_loss")
    method = FixMatch(FixMatch.settings(confidence=float(arrays["threshold"])), Playback)
    logits_x, logits_s = with_grad(arrays, "logits_x", "logits_s")
    method.segmenter.answers = [torch.cat([logits_x, logits_s])]
    method.teacher.network.answers = [arrays["teacher_logits_w"]]
    pad = arrays["pad"]
    strong = torch.zeros(1, 3, 3, *pad.shape[1:], dtype=torch.float64)
    output = method(TrainBatch(labeled(arrays["y_x"]), unlabeled(pad, strong, arrays["box"])), START)
    close(output.terms["labeled"].mean(), arrays["out_loss_x"])
    close(output.terms["unlabeled"].mean(), arrays["out_loss_s"])
    close(output.loss, arrays["out_loss"])
    output.loss.backward()
    close(logits_s.grad, arrays["grad_logits_s"])


def test_unimatch():
    arrays = Arrays("peers/unimatch_v1_loss")
    method = UniMatch(UniMatch.settings(confidence=float(arrays["threshold"])), Playback)
    names = ("logits_x", "logits_w", "logits_w_featdrop", "logits_s1", "logits_s2")
    logits_x, logits_w, dropped, *strong = with_grad(arrays, *names)
    thrown_away = torch.full_like(logits_x, torch.nan)
    decoded = torch.cat([logits_x, logits_w, thrown_away, dropped])
    method.segmenter.answers = [arrays["logits_w_partner"], decoded, torch.cat(strong)]
    views = torch.stack([arrays["x_s1"], arrays["x_s2"]])
    others = torch.stack([arrays["x_s1_partner"], arrays["x_s2_partner"]])
    own = unlabeled(arrays["pad"], views, arrays["box1"], arrays["box2"])
    partner = unlabeled(arrays["pad_partner"], others)
    output = method(TrainBatch(labeled(arrays["y_x"]), own, partner=partner), START)
    close(method.segmenter.shown[-1][:3], arrays["out_x_s1_mixed"])
    theirs = {"labeled": "x", "strong1": "s1", "strong2": "s2", "feature": "fp"}
    for name, term in output.terms.items():
        close(term.mean(), arrays[f"out_loss_{theirs[name]}"])
    close(output.loss, arrays["out_loss"])
    output.loss.backward()
    close(strong[0].grad, arrays["grad_logits_s1"])
    close(dropped.grad, arrays["grad_logits_fp"])
    close(logits_x.grad, arrays["grad_logits_x"])
    assert logits_w.grad is None or not logits_w.grad.any()


@pytest.mark.parametrize("dropout", [True, False])
def test_unimatch_v2(dropout):
    arrays = Arrays("peers/unimatch_v2_loss")
    settings = UniMatchV2.settings(confidence=float(arrays["threshold"]), feature_dropout=dropout)
    method = UniMatchV2(settings, Playback)
    logits_x, *strong = with_grad(arrays, "logits_x", "logits_s1", "logits_s2")
    method.segmenter.answers = [torch.cat([logits_x, *strong])]
    method.teacher.network.answers = [arrays["teacher_logits_w"]]
    views = torch.stack([arrays["x_s1"], arrays["x_s2"]])
    own = unlabeled(arrays["pad"], views, arrays["box1"], arrays["box2"])
    output = method(TrainBatch(labeled(arrays["y_x"]), own), START)
    _, *mixed = method.segmenter.shown[-1].split(3)
    for number, image in enumerate(mixed, 1):
        close(image, arrays[f"out_x_s{number}_mixed"])
    for name, term in output.terms.items():
        close(term.mean(), arrays[f"out_loss_{name.replace('strong', 's').replace('labeled', 'x')}"])
    close(output.loss, arrays["out_loss"])
    output.loss.backward()
    close(logits_x.grad, arrays["grad_logits_x"])
    for number, logits in enumerate(strong, 1):
        close(logits.grad, arrays[f"grad_logits_s{number}"])


def test_complementary_dropout(monkeypatch):
    """The masks are the official ones for its draws, and every map of one width is multiplied by them."""
    arrays = Arrays("peers/unimatch_v2_compdrop_dpt")
    kept, perm = arrays["bernoulli"].bool(), arrays["perm"]
    whole = torch.zeros(len(perm), dtype=torch.bool)
    whole[perm[: len(perm) // 2]] = True
    masks = complementary_masks(kept, whole)
    close(masks.double(), arrays["out_mask"])
    maps = tuple(arrays[f"feat{i}"].mT.unflatten(2, arrays["grid"].tolist()) for i in range(4))  # (2u, c, h, w)
    draws = iter([perm.double(), 1 - arrays["bernoulli"]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    dropped = complementary_dropout(Features(maps, (3, 4), (3, 4)))
    close(dropped.maps[0].flatten(2).mT, arrays["out_feat0"])
    for before, after in zip(maps, dropped.maps, strict=True):
        close(after, before * arrays["out_mask"][:, :, None, None])


HEAD = {
    "projects": "project",
    "resize_layers": "resize",
    "scratch.layer{}_rn": "level.{}",
    "scratch.refinenet{}.resConfUnit1": "fuse.{}.skip",
    "scratch.refinenet{}.resConfUnit2": "fuse.{}.refine",
    "scratch.refinenet{}.out_conv": "fuse.{}.out",
    "scratch.output_conv.0": "smooth.0",
    "scratch.output_conv.2": "classifier",
}
"""Names of the published DPT head and ours; it counts from 1 where there are braces."""


def test_dpt_head():
    arrays = Arrays("peers/unimatch_v2_compdrop_dpt")
    state = {}
    for name, tensor in arrays.part("w.").items():
        for theirs, ours in HEAD.items():
            for place in range(4):
                name = name.replace(f"{theirs.format(place + 1)}.", f"{ours.format(place)}.")
        state[name] = tensor
    unused = {name for name in state if name.startswith("fuse.3.skip")}
    assert len(unused) == 4  # the coarsest level has nothing to join
    head = DPTHead((6, 6, 6, 6), (4, 5, 6, 7), width=5, num_classes=4).double()
    head.load_state_dict({name: tensor for name, tensor in state.items() if name not in unused})
    grid = arrays["grid"].tolist()
    maps = [arrays[f"feat{i}"].mT.unflatten(2, grid) for i in range(4)]  # (2u, c, h, w)
    coarse = head(maps)
    close(coarse, arrays["out_head"])
    close(head([x * arrays["out_mask"][:, :, None, None] for x in maps]), arrays["out_head_dropped"])
    size = (14 * grid[0], 14 * grid[1])
    logits = Logits(coarse, size, size, head.corners_aligned)
    close(logits.full()[:, :, ::5, ::5], arrays["out_head_upsampled"])


def test_cps():
    arrays = Arrays("peers/cps")
    method = CPS(CPS.settings(cutmix=False, cross_weight=float(arrays["weight"])), Playback)
    lab1, unl1, lab2, unl2 = with_grad(arrays, "lab1", "unl1", "lab2", "unl2")
    method.segmenter.answers, method.second.answers = [lab1, unl1], [lab2, unl2]
    y = arrays["y"]
    output = method(TrainBatch(labeled(y), unlabeled(torch.zeros_like(y))), START)
    terms = output.terms
    close(terms["labeled"].mean(), arrays["out_sup1"])
    close(terms["labeled_2"].mean(), arrays["out_sup2"])
    crossed = sum(terms[name].weight * terms[name].mean() for name in ("cross", "cross_2"))
    close(crossed, arrays["out_cps"])
    close(output.loss, arrays["out_total"])
    output.loss.backward()
    close(unl1.grad, arrays["grad_unl1"])
    close(lab2.grad, arrays["grad_lab2"])


def test_cps_with_cutmix():
    arrays = Arrays("peers/cps")
    method = CPS(CPS.settings(cutmix=True, cross_weight=float(arrays["mix_weight"])), Playback)
    student1, student2 = with_grad(arrays, "mix_student1", "mix_student2")
    method.segmenter.answers = [arrays["mix_u0_net1"], arrays["mix_u1_net1"], student1, arrays["lab1"]]
    method.second.answers = [arrays["mix_u0_net2"], arrays["mix_u1_net2"], student2, arrays["lab2"]]
    y = arrays["y"]
    one = unlabeled(torch.zeros_like(y), None, arrays["mix_mask"][:, 0])
    two = unlabeled(torch.zeros_like(y))
    two = replace(two, weak=two.weak + 1)
    output = method(TrainBatch(labeled(y), one, partner=two), START)
    shown = method.segmenter.shown
    close(shown[2], arrays["mix_mask"].expand_as(shown[2]).double())
    _, labels = _labels_of(arrays)
    assert torch.equal(labels[0], arrays["out_mix_label_net1"]) and torch.equal(labels[1], arrays["out_mix_label_net2"])
    crossed = sum(output.terms[name].weight * output.terms[name].mean() for name in ("cross", "cross_2"))
    close(crossed, arrays["out_mix_cps"])
    crossed.backward()
    close(student1.grad, arrays["grad_mix_student1"])


@pytest.mark.parametrize("percent", [80, 95, 100])
def test_percentile_of_u2pl(percent):
    """Which pixels count; their loss has a factor of its own there."""
    arrays = Arrays("peers/u2pl_unsup")
    y = arrays["y"]
    share = (percent - 80) / 20
    method = FixMatch(FixMatch.settings(filter="percentile", drop_share=(0.2, 0.0)), Playback)
    _, keep = method.filter(pixels(arrays["teacher_logits"]), y != 255, Progress(int(100 * share), 1, 100))
    assert torch.equal(y.where(keep, 255), arrays[f"out_target_p{percent}"])
    loss = masked_cross_entropy(pixels(arrays["student_logits"]), y, keep, None).mean()
    close(loss * (y.numel() / keep.double().sum()) ** 2, arrays[f"out_loss_p{percent}"])


DISTANCES = {"squared": "var", "logits": "logits_var", "kl": "kld", "cross-entropy": "bce"}


@pytest.mark.parametrize(("weight", "theirs"), [("batch", "batchmean"), ("pixel", "pixel")])
@pytest.mark.parametrize("kind", DISTANCES)
def test_cutmix_seg(kind, weight, theirs):
    """Their share of confident pixels is a float32, and their padding can be half a pixel: the mean of none and one."""
    arrays = Arrays("peers/cutmixseg")
    settings = {"confidence": float(arrays["threshold"]), "distance": kind, "confidence_weight": weight}
    method = CutMixSeg(CutMixSeg.settings(unlabeled_views="strong", **settings), Playback)
    (student,) = with_grad(arrays, "student_logits")
    assert set(arrays["valid1"].unique().tolist()) == {0, 0.5, 1}
    losses = []
    for level in (0.5, 1):
        method.segmenter.answers = [torch.zeros_like(student), student]
        method.teacher.network.answers = [torch.cat([arrays["teacher_logits0"], arrays["teacher_logits1"]])]
        pads = [(arrays[f"valid{i}"][:, 0] < level).long() for i in (0, 1)]
        one = unlabeled(pads[0], arrays["x0"][None], arrays["mix_mask"][:, 0])
        two = unlabeled(pads[1], arrays["x1"][None])
        output = method(TrainBatch(labeled(pads[0]), one, partner=two), START)
        close(method.segmenter.shown[-1], arrays["out_x_mixed"])
        losses.append(output.terms["unlabeled"].mean())
    loss = sum(losses) / 2
    name = f"{DISTANCES[kind]}_{theirs}"
    tolerance = {"rtol": 1e-6 if weight == "batch" else 1e-10, "atol": 1e-14}
    torch.testing.assert_close(loss, arrays[f"out_loss_{name}"], **tolerance)
    if name == "var_batchmean":
        loss.backward()
        torch.testing.assert_close(student.grad, arrays[f"grad_student_{name}"], **tolerance)


@pytest.mark.parametrize(("threshold", "theirs"), [(None, "out_loss"), (0.0, "out_loss_thr_minus07")])
def test_augseg(threshold, theirs, monkeypatch):
    """Their threshold of -0.7 is none."""
    arrays = Arrays("peers/augseg_mix_and_loss")
    monkeypatch.setattr(augseg, "partners", lambda count, device: arrays["perm"])
    confidence = float(arrays["threshold"]) if threshold is None else threshold
    method = augseg.AugSeg(augseg.AugSeg.settings(confidence=confidence), Playback)
    (student,) = with_grad(arrays, "student_logits")
    method.segmenter.answers = [torch.cat([torch.zeros_like(student), student])]
    method.teacher.network.answers = [arrays["teacher_logits"]]
    boxes = torch.stack([arrays["box_l"].T, arrays["box_u"].T], 1)[None]
    weak = torch.zeros_like(arrays["x_l"])
    batch = TrainBatch(
        LabeledBatch(arrays["x_l"], arrays["y_l"]),
        UnlabeledBatch(weak, None, (), arrays["x_u_strong"][None], boxes, arrays["uniform"]),
    )
    valid = torch.ones_like(arrays["y_l"], dtype=torch.bool)
    close(augseg.image_confidence(pixels(arrays["teacher_logits"]), valid), arrays["out_confidence"])
    output = method(batch, START)
    close(method.segmenter.shown[0][4:], arrays["out_x_mixed"])
    close(output.terms["unlabeled"].mean(), arrays[theirs])
    if threshold is None:
        output.terms["unlabeled"].mean().backward()
        close(student.grad, arrays["grad_student"])


def test_sides_of_beta_boxes():
    """Their centres are not in the arrays, but the boxes are, and the lambda that they follow from."""
    arrays = Arrays("peers/augseg_mix_and_loss")
    for kind in ("l", "u"):
        top, left, bottom, right = arrays[f"box_{kind}"]
        most = 2 * (int(16 * np.sqrt(1 - float(arrays[f"lam_{kind}"]))) // 2)
        for first, last in ((top, bottom), (left, right)):
            inner = (first > 0) & (last < 16)
            assert ((last - first)[inner] == most).all() and ((last - first) <= most).all()


def _labels_of(arrays):
    """The labels that each network gives the mix, by the method's own function."""
    method = CPS(CPS.settings(), Playback)
    y = arrays["y"]
    for number, network in enumerate(method.networks(), 1):
        network.answers = [arrays[f"mix_u0_net{number}"], arrays[f"mix_u1_net{number}"]]
    one = unlabeled(torch.zeros_like(y), None, arrays["mix_mask"][:, 0])
    return method._mixed(TrainBatch(None, one, partner=unlabeled(torch.zeros_like(y))))


@pytest.mark.parametrize(("key", "count", "area"), [("cutmix_half", 1, (0.5, 0.5)), ("cps3", 3, (0.25, 0.5))])
def test_french_boxes(key, count, area):
    masks = Arrays("peers/french_boxes")[f"out_mask_{key}"][:, 0]
    boxes = french_boxes(len(masks), count, area, masks.shape[1:], np.random.RandomState(3))
    assert torch.equal(box_masks(torch.from_numpy(boxes), masks.shape[1:]), masks.bool())
