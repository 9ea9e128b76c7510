"""Steps of methods with two and three networks equal their official code's, in float64 (arrays: see README.md here)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from allspark.batch import IGNORE, LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.kernels.logits import Logits
from allspark.methods import ccvc
from allspark.methods.filters import lowest_share
from allspark.methods.gta_seg import GTASeg
from allspark.methods.implicit_augmentation import ClassStatistics
from allspark.methods.losses import weighted_cross_entropy
from allspark.methods.mkd import MKD
from allspark.methods.perturbations import adversarial_noise
from allspark.methods.ps_mt import PSMT, best_classes
from allspark.methods.ramps import ramp
from allspark.models.segmenter import Features, Segmenter
from tests.golden.arrays import Arrays
from tests.golden.test_peers import Playback, close, labeled, unlabeled, with_grad
from tests.helpers import pixels


def test_statistics_of_mkd():
    arrays = Arrays("peers/mkd_estimator")
    statistics = ClassStatistics(4, 5)
    for update in ("u0", "u1", "u2"):
        features, labels = arrays[f"{update}_feat"], arrays[f"{update}_label"]
        statistics.update(features.mT[None, :, :, None], labels[None, :, None])
        close(statistics.mean, arrays[f"{update}_mean"])
        close(statistics.variance, arrays[f"{update}_cov"])
        close(statistics.count, arrays[f"{update}_amount"])


class Reading(Playback):
    """A network whose classifier reads what it is told to, labelled images first, then unlabelled ones."""

    num_classes, hidden_channels = 4, 5

    def __init__(self):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.classifier = nn.Conv2d(5, 4, 1).double()

    def hidden(self, features):
        return self.answers.pop(0)

    def classify(self, hidden, features):
        return pixels(self.decoder.classifier(hidden))


def test_mkd():
    """Their loss, and so its gradient, was cast to float32. Step 40 of 100, counted from 1."""
    arrays = Arrays("peers/mkd_loss")
    method = MKD(MKD.settings(cutmix=False), Reading)
    names = ("branch1", "branch2", "teacher1", "teacher2")
    features = with_grad(arrays, "branch1_feat", "branch2_feat")
    features += [arrays["teacher1_feat"], arrays["teacher2_feat"]]
    networks = (*method.networks(), method.teacher.network, method.teacher_2.network)
    for network, name, feature in zip(networks, names, features, strict=True):
        network.decoder.classifier.load_state_dict({"weight": arrays[f"{name}_w"], "bias": arrays[f"{name}_b"]})
        network.answers = list(feature.split(2))
    mask = arrays["gt"][:, 0]
    strong = torch.zeros(1, 2, 3, 16, 16, dtype=torch.float64)
    method.labeled_loss = lambda logits, mask: None
    output = method(TrainBatch(labeled(mask), unlabeled(torch.zeros_like(mask), strong)), Progress(39, 1, 100))
    crossed = sum(term.weight * term.mean() for name, term in output.terms.items() if not name.startswith("labeled"))
    torch.testing.assert_close(crossed.float(), arrays["loss"], rtol=1e-6, atol=0)
    crossed.backward()
    for name, feature, statistics in zip(names, features, method.statistics, strict=True):
        close(statistics.variance, arrays[f"{name}_cov"])
        close(statistics.mean, arrays[f"{name}_mean"])
        close(statistics.count, arrays[f"{name}_amount"])
        if name.startswith("branch"):
            torch.testing.assert_close(feature.grad, arrays[f"grad_{name}"], rtol=1e-5, atol=1e-8)


class Comparing(Playback):
    """A network with features to be compared, which come before the logits."""

    hidden_channels, encoder, decoder = 4, None, None

    def hidden(self, features):
        return self.answers.pop(0)

    def classify(self, hidden, features):
        return pixels(self.answers.pop(0))


def test_ccvc(monkeypatch):
    monkeypatch.setattr(ccvc, "MappedSegmenter", lambda network, dropout: network)
    arrays = Arrays("peers/ccvc")
    weights = {f"{name}_weight": float(arrays[f"w_{short}"]) for name, short in
               (("labeled", "ce"), ("cross", "con"), ("discrepancy", "dis"), ("conflict", "conflict"))}  # fmt: skip
    method = ccvc.CCVC(ccvc.CCVC.settings(conflict="code", confidence=float(arrays["threshold"]), **weights), Comparing)
    kinds = [f"{part}_{what}" for part in ("lab", "mixed", "raw") for what in ("feature", "pred")]
    names = [f"{kind}{number}" for kind in kinds for number in (1, 2)]
    given = dict(zip(names, with_grad(arrays, *names), strict=True))
    for number, network in enumerate(method.networks(), 1):
        network.answers = [arrays[f"eval_pred{number}"], *(given[name] for name in names if name.endswith(str(number)))]
    pad, y = arrays["pad"], arrays["y_l"]
    strong = torch.zeros(1, 3, 3, *pad.shape[1:], dtype=torch.float64)
    output = method(TrainBatch(labeled(y), unlabeled(pad, strong, arrays["box"])), Progress(0, 1, 1))
    means = {name: term.mean() for name, term in output.terms.items()}
    for name, theirs in (("cross_2", "con1"), ("cross", "con2"), ("weak_2", "raw_con1"), ("weak", "raw_con2")):
        close(means[name], arrays[f"out_{theirs}"])
    for start, theirs in (("labeled", "ce"), ("alike", "dis")):
        close(sum(output.terms[x].weight * means[x] for x in means if x.startswith(start)), arrays[f"out_{theirs}"])
    conflict = (arrays["out_conflict1"] | arrays["out_conflict2"]).double().mean()
    close(output.metrics["conflict"], conflict)
    close(output.loss, arrays["out_loss"])
    output.loss.backward()
    for name in ("mixed_pred1", "raw_feature2", "lab_feature1"):
        close(given[name].grad, arrays[f"grad_{name}"])


class Twenty(Playback):
    num_classes = 21


def test_ps_mt():
    """Both teachers say the same here, so that their mean is what was given."""
    arrays = Arrays("peers/psmt")
    method = PSMT(PSMT.settings(confidence=float(arrays["threshold"]), noise=0, cutmix=False), Twenty)
    (student,) = with_grad(arrays, "student_logits")
    method.segmenter.answers = [torch.zeros_like(student), student]
    for teacher in method.teachers:
        teacher.answers = [arrays["teacher_logits"]]
    pad = torch.zeros(2, 5, 5, dtype=torch.int64)
    batch = TrainBatch(labeled(pad), unlabeled(pad, torch.zeros(1, 2, 3, 5, 5, dtype=torch.float64)))
    term = method(batch, Progress(20, 1, 40)).terms["unlabeled"]
    assert term.weight == 1.5  # the ramp is over
    close(term.mean(), arrays["out_loss_pos"])
    term.mean().backward()
    close(student.grad, arrays["grad_student"])


def test_the_resting_teacher_of_ps_mt():
    arrays = Arrays("peers/psmt")
    merged = best_classes(arrays["assist"], arrays["core"], int(arrays["topk"]))
    close(merged, arrays["out_assist"])


def test_the_ramp_of_ps_mt():
    arrays = Arrays("peers/psmt")
    steps = arrays["ramp_epoch_iter"] @ torch.stack([arrays["ramp_iters_per_epoch"], torch.tensor(1)])
    length = float(arrays["ramp_epochs"] * arrays["ramp_iters_per_epoch"])
    weights = [float(arrays["ramp_final"]) * ramp(step / length, "cosine") for step in steps.tolist()]
    close(torch.tensor(weights, dtype=torch.float64), arrays["out_ramp"])


class Convolving(Playback):
    def __init__(self, weight, bias):
        super().__init__()
        self.decoder = nn.Conv2d(4, 5, 3, padding=1).double()
        self.decoder.load_state_dict({"weight": weight, "bias": bias})

    def decode(self, features):
        return pixels(self.decoder(features.maps[0]))


def test_the_noise_of_ps_mt(monkeypatch):
    arrays = Arrays("peers/psmt")
    networks = [Convolving(arrays[f"vat_w{i}"], arrays[f"vat_b{i}"]) for i in (1, 2)]
    monkeypatch.setattr(torch, "rand_like", lambda _: arrays["vat_uniform"])
    features = Features((arrays["vat_x"],), (5, 5), (5, 5))
    noise = adversarial_noise(features, networks, float(arrays["vat_eps"]), float(arrays["vat_xi"]))
    torch.testing.assert_close(noise.maps[0], arrays["out_vat_r"], rtol=1e-8, atol=1e-10)
    assert all(x.grad is None for network in networks for x in network.parameters())


def _gta_loss(arrays, student, target, percent):
    """Pixels that are ignored anyway cost nothing, but have their confidence in the mean."""
    confidence, _ = pixels(arrays["teacher_logits"]).best()
    known = target != IGNORE
    keep = lowest_share(-confidence, known, percent / 100) | ~known
    term = weighted_cross_entropy(pixels(student), target, confidence, keep, torch.ones_like(known))
    return term, target.where(keep, IGNORE)


def test_the_loss_of_gta_seg():
    arrays = Arrays("peers/gta_unsup")
    (student,) = with_grad(arrays, "student_logits")
    term, target = _gta_loss(arrays, student, arrays["y"], int(arrays["percent"]))
    assert torch.equal(target, arrays["out_target"])
    close(term.mean(), arrays["out_loss"])
    term.mean().backward()
    close(student.grad, arrays["grad"])


@pytest.mark.parametrize("percent", [100, 80, 50])
def test_the_loss_of_gta_seg_with_ignored_pixels(percent):
    arrays = Arrays("peers/gta_conf_weight_loss")
    (student,) = with_grad(arrays, "student_logits")
    term, target = _gta_loss(arrays, student, arrays["target"], percent)
    assert torch.equal(target, arrays[f"target_after_p{percent}"])
    close(term.mean(), arrays[f"loss_p{percent}"])
    term.mean().backward()
    close(student.grad, arrays[f"grad_p{percent}"])


class TwoLayers(Segmenter):
    """Their toy network: two layers and a classifier."""

    num_classes = 3

    def __init__(self):
        nn.Module.__init__(self)
        self.encoder, self.decoder = nn.Conv2d(3, 4, 3, 2, 1), nn.Module()
        self.decoder.head, self.decoder.classifier = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.decoder.predictor = ("classifier",)
        self.bottleneck = None
        self.double()

    def logits(self, image, guide=None):
        hidden = self.decoder.head(self.encoder(image).tanh()).tanh()
        return Logits(self.decoder.classifier(hidden), (8, 8), (8, 8), aligned=True)


def test_the_updates_of_gta_seg():
    """Three epochs of two steps, the first a warm-up.

    What assistant and teacher become in the warm-up's last step and the next one is overwritten before anything reads
    it: here at the end of the step, there at the start of the next.
    """
    arrays = Arrays("peers/gta_update_rule")
    method = GTASeg(GTASeg.settings(tie_classifier=True, supervised_epochs=1), TwoLayers)
    networks = {"student": method.segmenter, "ta": method.assistant, "teacher": method.teacher.network}
    for name, network in networks.items():
        state = {key: x for key, x in arrays.part(f"init/{name}/").items() if "representation" not in key}
        network.load_state_dict(state)
    rates = ((method.segmenter, 0.1), (method.assistant, 0.05))
    groups = [{"params": network.parameters(), "lr": rate} for network, rate in rates]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
    for step in range(6):
        given = arrays.part(f"e{step // 2}s{step % 2}/")
        nowhere = torch.zeros(1, 2, 1, 4, dtype=torch.int64)
        unlabeled = UnlabeledBatch(given["x_u"], boxes=nowhere)
        batch, progress = TrainBatch(LabeledBatch(given["x_l"], given["y_l"]), unlabeled), Progress(step, 2, 6)
        for phase in method.phases_of(progress):
            optimizer.zero_grad(set_to_none=True)
            method(batch, progress, phase).loss.backward()
            optimizer.step()
            method.after_phase(phase, progress)
        method.after_step(progress)
        for name in ("student",) if step in (1, 2) else networks:
            for key, tensor in networks[name].state_dict().items():
                close(tensor, arrays[f"after{step}/{name}/{key}"])
    assert torch.equal(method.segmenter.decoder.classifier.weight, method.assistant.decoder.classifier.weight)
