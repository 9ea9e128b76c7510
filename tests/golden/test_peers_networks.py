"""Steps of methods with two and three networks equal their official code's, in float64 (arrays: see README.md here)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from allspark.batch import Progress, TrainBatch
from allspark.methods.implicit_augmentation import ClassStatistics
from allspark.methods.mkd import MKD
from allspark.models.segmenter import Segmenter
from tests.golden.arrays import Arrays
from tests.golden.test_peers import Playback, close, labeled, unlabeled, with_grad
from tests.helpers import pixels

START = Progress(0, 1, 1)


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
    """Their loss was cast to float32. Statistics start empty, at step 40 of 100, counted from 1."""
    arrays = Arrays("peers/mkd_loss")
    method = MKD(MKD.settings(cutmix=False), Reading)
    names = ("branch1", "branch2", "teacher1", "teacher2")
    features = with_grad(arrays, "branch1_feat", "branch2_feat")
    features += [arrays["teacher1_feat"], arrays["teacher2_feat"]]
    networks = (*method.networks(), method.teacher.network, method.teacher_2.network)
    for network, name, feature in zip(networks, names, features, strict=True):
        network.decoder.classifier.weight.data, network.decoder.classifier.bias.data = arrays[f"{name}_w"], arrays[f"{name}_b"]
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
            print((feature.grad-arrays[f"grad_{name}"]).abs().max())
            torch.testing.assert_close(feature.grad, arrays[f"grad_{name}"], rtol=1e-6, atol=1e-9)
