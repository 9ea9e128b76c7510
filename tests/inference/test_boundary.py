"""Boundary IoU against the definition, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from allspark.inference.boundary import BoundaryIoU, near_edge


def naive_near(labels, width):
    """Erosion as the authors do it, class by class: what a square window around the pixel does not fill."""
    height, length = labels.shape
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(length):
            window = [
                labels[j, i] if 0 <= j < height and 0 <= i < length else -1
                for j in range(y - width, y + width + 1)
                for i in range(x - width, x + width + 1)
            ]
            near[y, x] = any(value != labels[y, x] for value in window)
    return near


def blobs(rng, height, width, classes):
    """Labels in patches of four pixels."""
    coarse = rng.integers(0, classes, (height // 4 + 1, width // 4 + 1))
    return np.kron(coarse, np.ones((4, 4), int))[:height, :width]


@pytest.mark.parametrize("width", [1, 2])
def test_near_an_edge_is_what_the_definition_says(width):
    rng = np.random.default_rng(0)
    labels = np.stack([blobs(rng, 13, 17, 3) for _ in range(2)])
    found = near_edge(torch.from_numpy(labels), width).numpy()
    assert np.array_equal(found, np.stack([naive_near(one, width) for one in labels]))


def test_iou_of_boundaries_over_two_images():
    rng, k = np.random.default_rng(1), 4
    pred = np.stack([blobs(rng, 60, 80, 3) for _ in range(2)])
    true = np.where(rng.random(pred.shape) < 0.9, pred, 0)
    true[:, :9, :9] = 255
    width = round(0.02 * math.hypot(60, 80))
    counted = true != 255
    near = [np.stack([naive_near(one, width) for one in labels]) & counted for labels in (pred, true)]
    expected = []
    for c in range(k):
        p, t = near[0] & (pred == c), near[1] & (true == c)
        expected.append((p & t).sum() / (p | t).sum() if (p | t).any() else np.nan)
    measure = BoundaryIoU(k)
    for one, mask in zip(pred, true, strict=True):
        measure.update(torch.from_numpy(one)[None], torch.from_numpy(mask.astype(np.uint8))[None])
    np.testing.assert_allclose(measure.iou(), expected)
    assert np.isnan(measure.iou()[3]) and 0 < measure.iou()[0] < 1


def test_a_perfect_prediction_scores_one_and_a_shifted_one_much_less_than_its_iou():
    mask = np.zeros((100, 100), np.uint8)
    mask[20:80, 20:80] = 1
    scores = []
    for shift in (0, 3):
        measure = BoundaryIoU(2)
        measure.update(torch.from_numpy(np.roll(mask, shift, 1))[None], torch.from_numpy(mask)[None])
        scores.append(measure.iou()[1])
    iou = (57 * 60) / (63 * 60)
    assert scores[0] == 1 and scores[1] < iou - 0.3
