import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allspark.errors import DataError
from allspark.inference.metrics import ConfusionMatrix, Scores


def naive_matrix(pred, target, classes, ignore=255):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for truth, guess in zip(target.ravel().tolist(), pred.ravel().tolist(), strict=True):
        if truth != ignore:
            matrix[truth, guess] += 1
    return matrix


def pair(seed, classes=5, size=(2, 7, 9), ignore=255):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, size)
    target[rng.random(size) < 0.2] = ignore
    return rng.integers(0, classes, size), target


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 21))
def test_matrix_and_scores_equal_a_pixel_loop_and_numpy(seed, classes):
    pred, target = pair(seed, classes)
    confusion = ConfusionMatrix(classes)
    for index in range(2):  # one image as int64, the other as the uint8 that a mask file gives
        kind = (np.int64, np.uint8)[index]
        confusion.update(torch.from_numpy(pred[index]), torch.from_numpy(target[index].astype(kind)))
    assert np.array_equal(confusion.matrix.numpy(), naive_matrix(pred, target, classes))

    scores = confusion.scores()
    seen = target != 255
    for label in range(classes):
        union = ((pred == label) | (target == label)) & seen
        both = (pred == label) & (target == label)
        expected = both.sum() / union.sum() if union.any() else np.nan
        assert np.array_equal(scores.iou[label], expected, equal_nan=True)
    if seen.any():
        assert scores.pixel_accuracy == (pred == target)[seen].mean()
        assert scores.miou == np.nanmean(scores.iou)


def test_a_batch_counts_like_its_images_in_any_order():
    pred, target = (torch.from_numpy(array) for array in pair(0))
    together, apart = ConfusionMatrix(5), ConfusionMatrix(5)
    together.update(pred, target)
    for index in (1, 0):
        apart.update(pred[index], target[index])
    assert together.matrix.sum() > 0
    assert torch.equal(together.matrix, apart.matrix)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 0, 1, 0, 255]]))
    scores = confusion.scores()
    # class 2 is predicted on an ignored pixel only, class 3 nowhere
    np.testing.assert_array_equal(scores.iou, [2 / 3, 1 / 2, np.nan, np.nan])
    assert scores.miou == (2 / 3 + 1 / 2) / 2
    assert scores.pixel_accuracy == 3 / 4


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    np.testing.assert_array_equal(confusion.scores().iou, [0.5, 0.0])


@pytest.mark.parametrize(("pred", "target"), [(0, 7), (0, -1), (9, 1), (-1, 1)])
def test_values_that_are_no_class_are_reported_and_not_dropped(pred, target):
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[pred, 1]]), torch.tensor([[target, 1]]))
    with pytest.raises(DataError, match=r"1 pixels have a class outside 0\.\.2"):
        confusion.scores()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        ConfusionMatrix(3).update(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.uint8))


def test_no_pixel_gives_nan_and_no_warning():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), 255, dtype=torch.uint8))
    scores = confusion.scores()
    assert np.isnan([scores.miou, scores.pixel_accuracy, *scores.iou]).all()


def test_counts_of_a_large_data_set_do_not_round():
    confusion = ConfusionMatrix(2)
    confusion.matrix[0, 0] = 2**53
    confusion.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert int(confusion.matrix[0, 0]) == 2**53 + 1


def test_to_json_names_classes_and_has_no_nan():
    scores = Scores(np.array([0.5, np.nan]), 0.5, 0.75, np.array([[3, 0], [1, 0]]))
    plain = scores.to_json(("sky", "größe"))
    assert plain == {"miou": 0.5, "pixel_accuracy": 0.75, "iou": {"sky": 0.5, "größe": None}}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    with pytest.raises(ValueError, match="1 class names for the scores of 2 classes"):
        scores.to_json(("sky",))
    assert scores.details(("sky", "größe")) == {
        "precision": {"sky": 0.75, "größe": None},
        "recall": {"sky": 1.0, "größe": 0.0},
        "dice": {"sky": 6 / 7, "größe": 0.0},
    }


def test_dice_is_the_harmonic_mean_of_precision_and_recall():
    matrix = np.random.default_rng(0).integers(1, 50, (4, 4))
    confusion = ConfusionMatrix(4)
    confusion.matrix[:] = torch.from_numpy(matrix)
    scores = confusion.scores()
    harmonic = 2 * scores.precision * scores.recall / (scores.precision + scores.recall)
    np.testing.assert_allclose(scores.dice, harmonic)
    np.testing.assert_allclose(scores.iou, scores.dice / (2 - scores.dice))
    assert np.array_equal(scores.matrix, matrix)
