from pathlib import Path

import numpy as np
import torch

from allspark.inference.metrics import ConfusionMatrix


def test_iou_equals_the_published_implementation():
    golden = np.load(Path(__file__).parent / "iou.npz")
    confusion = ConfusionMatrix(len(golden["iou_percent"]))
    for index in range(3):
        pred, target = (torch.from_numpy(golden[f"{name}{index}"]) for name in ("pred", "target"))
        confusion.update(pred, target)
    matrix = confusion.matrix.numpy()
    hits = matrix.diagonal()
    np.testing.assert_array_equal(hits, golden["intersection"])
    np.testing.assert_array_equal(matrix.sum(0) + matrix.sum(1) - hits, golden["union"])
    scores = confusion.scores()
    np.testing.assert_allclose(scores.iou * 100, golden["iou_percent"], rtol=1e-9)
    np.testing.assert_allclose(scores.miou * 100, golden["iou_percent"].mean(), rtol=1e-9)
