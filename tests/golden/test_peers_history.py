"""Methods that are more than UniMatch's step equal their official code, in float64 (arrays: see README.md here)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from allspark.batch import Progress, TrainBatch
from allspark.kernels.logits import Logits
from allspark.methods import corrmatch
from allspark.methods import propagation as module
from allspark.methods.corrmatch import CorrMatch
from allspark.methods.history import History
from allspark.methods.losses import trusted_cross_entropy
from allspark.methods.prevmatch import PrevMatch, triangle
from allspark.methods.propagation import region_maps
from allspark.methods.semivl import SemiVL
from allspark.models.clip import best_concepts
from allspark.models.correlation import CorrelationHead
from allspark.models.segmenter import Features
from tests.golden.arrays import Arrays
from tests.golden.test_peers import START, Playback, close, labeled, unlabeled, with_grad
from tests.helpers import pixels

IMAGE = torch.zeros(1, 3, 1, 1)


class OfPixels(Logits):
    """Logits whose losses are given."""

    def losses(self, target):
        return self.coarse[:, 0]


def test_the_ensemble_of_earlier_students():
    arrays = Arrays("peers/prevmatch")
    history = History(Playback(), len(arrays["prev_logits"]))
    for network, logits in zip(history.networks, arrays["prev_logits"], strict=True):
        network.answers = [logits]
    weights = dict(zip(arrays["chosen"].tolist(), arrays["dirichlet"].tolist(), strict=True))
    close(history.logits(IMAGE, weights).full(), arrays["out_ensemble"])
    weights = {4: 0.25, 1: 0.5, 2: 0.25}
    for network, logits in zip(history.networks, arrays["prev_logits"], strict=True):
        network.answers = [logits]
    expected = sum(weight * arrays["prev_logits"][place] for place, weight in weights.items())
    close(history.logits(IMAGE, weights).full(), expected)


@pytest.mark.parametrize(
    ("by", "theirs"), [("pixel", "pixelwise"), ("share", "pixelratio"), ("confidence", "pixelavg")]
)
def test_how_labels_of_earlier_students_are_trusted(by, theirs):
    arrays = Arrays("peers/prevmatch")
    valid, confidence = arrays["pad"] != 255, arrays["conf"]
    size = tuple(valid.shape[1:])
    trust = confidence if by == "confidence" else confidence >= arrays["threshold"]
    logits = OfPixels(arrays["loss_map"][:, None], size, size)
    loss = trusted_cross_entropy(logits, valid.long(), trust, valid, by, as_code=True).mean()
    close(loss, arrays[f"out_{theirs}"])
    assert not valid.all() and (by == "pixel") == bool(
        loss == trusted_cross_entropy(logits, valid.long(), trust, valid, by).mean()
    )


def test_the_weight_of_the_past():
    arrays = Arrays("peers/prevmatch")
    for epoch, weight in zip(arrays["lambda_epoch"].tolist(), arrays["out_lambda"], strict=True):
        total = int(arrays["lambda_total"])
        assert triangle(Progress(7 * epoch + 3, 7, 7 * total)) == pytest.approx(float(weight), rel=1e-12)


def test_prevmatch_without_a_past_is_unimatch_and_with_one_has_its_labels_too():
    """Their step with earlier students is not in the arrays; its terms are, as UniMatch's of other labels."""
    arrays = Arrays("peers/unimatch_v1_loss")
    names = ("logits_x", "logits_w_featdrop", "logits_s1", "logits_s2")
    logits_x, dropped, *strong = with_grad(arrays, *names)
    views = torch.stack([arrays["x_s1"], arrays["x_s2"]])
    others = torch.stack([arrays["x_s1_partner"], arrays["x_s2_partner"]])
    batch = TrainBatch(
        labeled(arrays["y_x"]),
        unlabeled(arrays["pad"], views, arrays["box1"], arrays["box2"]),
        partner=unlabeled(arrays["pad_partner"], others),
    )
    progress = Progress(3, 1, 8)  # a weight of 3/4
    threshold = float(arrays["threshold"])
    method = PrevMatch(PrevMatch.settings(confidence=threshold, old_confidence=threshold, history=1), Playback)

    def step():
        decoded = torch.cat([logits_x, arrays["logits_w"], torch.full_like(logits_x, torch.nan), dropped])
        method.segmenter.answers = [arrays["logits_w_partner"], decoded, torch.cat(strong)]
        return method(batch, progress)

    close(step().loss, arrays["out_loss"])
    method.after_validation(progress, best=False)
    assert len(method.history) == 0
    method.after_validation(progress, best=True)
    assert len(method.history) == 1
    method.history.networks[0].answers = [torch.cat([arrays["logits_w"], arrays["logits_w_partner"]])]
    output = step()
    theirs = {"strong1": "s1", "strong2": "s2", "feature": "fp"}
    for name, short in theirs.items():  # the past says what the present says
        close(output.terms[name].mean(), arrays[f"out_loss_{short}"])
        close(output.terms[f"old_{name}"].mean(), arrays[f"out_loss_{short}"])
    standard = 0.25 * arrays["out_loss_s1"] + 0.25 * arrays["out_loss_s2"] + 0.5 * arrays["out_loss_fp"]
    close(output.loss, (arrays["out_loss_x"] + standard + 0.75 * standard) / 2.75)
    known = method.counts(batch)
    assert known.keys() == output.terms.keys()
    assert all(int(known[name]) == int(term.count) for name, term in output.terms.items())


def test_the_correlation_of_corrmatch():
    """Their square root of five is a float32, which one of the factors makes up for here."""
    arrays = Arrays("peers/corrmatch")
    head = CorrelationHead(6, 5, width=6, dropout=0.0).double()
    head.project = torch.nn.Identity()
    for layer, number in ((head.query, 1), (head.key, 2)):
        layer.weight.data, layer.bias.data = arrays[f"corr_w{number}"], arrays[f"corr_b{number}"]
    for parameter in head.query.parameters():
        parameter.data *= math.sqrt(5) / float(torch.tensor(5.0).sqrt())
    features = Features((arrays["corr_feat"],), (16, 16), (16, 16))
    scores = replace(pixels(arrays["corr_logits"]), aligned=True)
    method = CorrMatch(CorrMatch.settings(), corr_network)
    method.correlation = head
    (spread,), likeness = method.correlated(features, [scores])
    close(spread.coarse, arrays["out_corr"])
    maps = region_maps(likeness, arrays["corr_index"].expand(2, -1), spread)
    assert torch.equal(maps, arrays["out_corr_map"].bool())


THEIRS = {"labeled": "x", "labeled_correlated": "x_corr", "strong1": "s", "feature": "fp", "soft": "kl"}


def corr_network():
    network = Playback()
    network.encoder = type("Encoder", (), {"channels": (6,)})
    return network


def test_corrmatch(monkeypatch):
    """Their threshold moves before a step uses it, ours after: the second of two equal steps is theirs."""
    arrays = Arrays("peers/corrmatch")
    names = ("logits_x", "logits_w", "logits_fp", "logits_s", "logits_x_corr", "logits_w_corr", "logits_s_corr")
    logits_x, logits_w, dropped, logits_s, spread_x, spread_w, spread_s = with_grad(arrays, *names)
    memory = float(arrays["thresh_momentum"])
    settings = {"confidence": float(arrays["thresh_before"]), "threshold_memory": memory, "soft_target": "code"}
    method = CorrMatch(CorrMatch.settings(**settings), corr_network)
    likeness = torch.zeros(4, 256, 256, dtype=torch.float64)
    monkeypatch.setattr(corrmatch, "region_maps", lambda *_: arrays["segments"].bool())
    propagated = []

    def spread_labels(*arguments):
        propagated.append((*arguments[:2], *module.spread_labels(*arguments)))
        return propagated[-1][2:]

    monkeypatch.setattr(corrmatch, "spread_labels", spread_labels)
    strong = torch.zeros(1, 2, 3, 16, 16, dtype=torch.float64)
    own = replace(unlabeled(arrays["pad"], strong, arrays["box"]), chance=torch.zeros(2, dtype=torch.float64))
    batch = TrainBatch(labeled(arrays["y_x"]), own, partner=unlabeled(arrays["pad_partner"], strong))
    for number in range(2):
        decoded = torch.cat([logits_x, logits_w, torch.full_like(logits_x, torch.nan), dropped])
        method.segmenter.answers = [arrays["logits_w_partner"], decoded, logits_s]
        heard = iter([(torch.cat([spread_x, spread_w]), likeness), (spread_s, likeness[:2])])
        method.correlation.forward = lambda *_, heard=heard: next(heard)
        output = method(batch, START)
        assert float(method.level.value) == float(arrays["thresh_before" if number == 0 else "out_thresh"])
        method.after_step(START)
        if number == 0:
            close(method.level.value, arrays["out_thresh"])
            method.level.value.copy_(arrays["out_thresh"])
    _, confident, labels, trusted = propagated[-1]
    assert torch.equal(confident, arrays["out_conf_mask"].bool())
    assert torch.equal(trusted, arrays["out_prop_mask"].bool()) and (trusted & ~confident).any()
    assert torch.equal(labels, arrays["out_label"])
    terms = {name: term.mean() for name, term in output.terms.items()}
    for name, theirs in THEIRS.items():
        close(terms[name], arrays[f"out_loss_{theirs}"])
    close(0.5 * (terms["correlated"] + terms["correlated_weak"]), arrays["out_loss_corr"])
    close(output.loss, arrays["out_loss"])
    output.loss.backward()
    close(logits_s.grad, arrays["grad_logits_s"])
    known = method.counts(batch)
    assert known.keys() == terms.keys()
    assert all(int(known[name]) == int(term.count) for name, term in output.terms.items())


TRUST = {"pixelwise": "pixel", "pixelratio": "share", "pixelavg": "confidence"}
OVER = {"mean": "labels", "mean_valid": "valid", "mean_all": "all"}


class Clip(torch.nn.Module):
    """Says what it is told to."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def forward(self, image):
        """Certain of each label, and of nothing where it is 255."""
        certain = torch.nn.functional.one_hot(self.labels.where(self.labels != 255, 0), 5).movedim(3, 1).double()
        return pixels(100 * certain * (self.labels != 255)[:, None])


@pytest.mark.parametrize("reduction", OVER)
@pytest.mark.parametrize("mode", TRUST)
def test_semivl(mode, reduction):
    arrays = Arrays("peers/semivl_losses")
    settings = {
        "confidence": float(arrays["conf_thresh"]),
        "trust": TRUST[mode],
        "trust_sums": "code",
        "clip_mean": OVER[reduction],
        "clip_weight": (float(arrays["lambda"]),) * 2,
    }
    method = SemiVL(SemiVL.settings(**settings), Playback)
    own, other = arrays["clip"], arrays["clip_other"]
    method.clip = Clip(torch.cat([own, other]))
    names = ("pred_x", "pred_w", "pred_w_other", "pred_s1", "pred_s2", "pred_fp")
    pred_x, pred_w, pred_w_other, pred_s1, pred_s2, pred_fp = (arrays[name] for name in names)
    decoded = torch.cat([pred_x, pred_w, torch.full_like(pred_x, torch.nan), pred_fp])
    method.segmenter.answers = [pred_w_other, decoded, torch.cat([pred_s1, pred_s2])]
    strong = torch.zeros(2, 2, 3, 6, 6, dtype=torch.float64)
    batch = TrainBatch(
        labeled(arrays["mask_x"]),
        unlabeled(arrays["ignore"], strong, arrays["mix1"], arrays["mix2"]),
        partner=unlabeled(arrays["ignore_other"], strong),
    )
    output = method(batch, START)
    close(output.terms["labeled"].mean(), arrays["loss_x"])
    for name, short in {"strong1": "s1", "strong2": "s2", "feature": "fp"}.items():
        close(output.terms[name].mean(), arrays[f"{mode}_{short}"])
        close(output.terms[f"clip_{name}"].mean(), arrays[f"mc_{reduction}_{short}"])
    close(output.loss, arrays[f"total_{mode}_{reduction}"])


def test_the_concepts_of_semivl():
    arrays = Arrays("peers/semivl_losses")
    close(best_concepts(arrays["concept_pred"], arrays["concept_groups"], 3), arrays["concept_agg"])
