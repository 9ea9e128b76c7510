"""What a run's health is made of, and when it is worth a warning."""

import shutil

import numpy as np
import pytest
import torch

from allspark.config.files import apply_overrides
from allspark.config.schema import EvalConfig
from allspark.data.image import normalize, read_image, read_mask
from allspark.data.sets import open_source
from allspark.engine import health
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.inference.predictor import Predictor
from allspark.methods.base import class_pixels
from tests.helpers import LogitsOf

CLASSES = ("road", "sky", "car", "sign")


class Painter(LogitsOf):
    """Calls bright red pixels class 1 and all others class 0."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, image):
        score = image[:, :1] - self.threshold
        return torch.cat([-score, score, *[torch.full_like(score, -100)] * 4], 1)


@pytest.fixture
def config(tiny_config, tiny_folder):
    return apply_overrides(tiny_config, [f"data.root={tiny_folder}"])


def test_class_pixels_count_like_numpy():
    target = torch.randint(0, 5, (3, 20, 30))
    target[torch.rand(target.shape) < 0.3] = 255
    expected = [int((target == k).sum()) for k in range(5)]
    assert class_pixels(5, labeled=target)["labeled"].tolist() == expected


def test_a_look_equals_a_naive_one(config, tmp_path):
    source = open_source(config.data)
    predictor = Predictor(Painter(0.2), EvalConfig())
    seen = health.probe(predictor, source, 100, None, max_pixels=10**9)
    flat, right, total = [], 0, 0
    for sample in source.unlabeled:
        red = normalize(np.asarray(read_image(sample.image)))[0]
        flat.append((red > 0.2).astype(np.uint8).ravel())
        if sample.mask is not None:
            mask = read_mask(sample.mask).ravel()
            right += (mask == flat[-1])[mask != 255].sum()
            total += (mask != 255).sum()
    np.testing.assert_array_equal(seen.labels, np.concatenate(flat))
    assert seen.agreement is None
    assert seen.pseudo_accuracy == (pytest.approx(right / total) if total else None)
    assert 0 < seen.miou["labeled"] < 1
    again = health.probe(Predictor(Painter(0.3), EvalConfig()), source, 100, seen.labels, max_pixels=10**9)
    assert again.agreement == pytest.approx(np.mean(again.labels == seen.labels)) and again.agreement < 1
    other = health.probe(predictor, source, 2, seen.labels, max_pixels=10**9)
    assert other.agreement is None and len(other.labels) < len(seen.labels)  # other images are watched


def test_masks_of_unlabelled_images_give_the_accuracy_of_pseudo_labels(config):
    source = open_source(config.data)
    masked = open_source(config.data.model_copy(update={"labeled": None}))
    swapped = type(source)(
        **{**vars(source), "labeled": masked.labeled[:1], "unlabeled": masked.labeled[1:]},
    )
    seen = health.probe(Predictor(Painter(0.2), EvalConfig()), swapped, 8, None, max_pixels=10**9, threshold=0.9)
    right = total = kept = kept_right = 0
    for sample in swapped.unlabeled:
        score = normalize(np.asarray(read_image(sample.image)))[0] - 0.2
        red = score > 0
        mask = read_mask(sample.mask)
        right += int((mask == red)[mask != 255].sum())
        total += int((mask != 255).sum())
        sure = (1 / (1 + np.exp(-2 * np.abs(score))) >= 0.9) & (mask != 255)
        kept += int(sure.sum())
        kept_right += int((mask == red)[sure].sum())
    assert seen.pseudo_accuracy == pytest.approx(right / total)
    assert (seen.kept, seen.kept_precision) == (pytest.approx(kept / total), pytest.approx(kept_right / kept))
    assert 0 < seen.kept < 1
    assert {"pseudo_kept", "pseudo_precision"} < seen.to_json().keys()
    unknown = health.probe(Predictor(Painter(0.2), EvalConfig()), swapped, 8, None, max_pixels=10**9)
    assert unknown.kept is None and "pseudo_kept" not in unknown.to_json()
    assert set(seen.miou) == {"labeled", "unlabeled"}


@pytest.mark.parametrize(
    ("labeled", "pseudo", "lost"),
    [
        ([50, 30, 15, 5], [55, 30, 14, 1], []),  # rarer, but there
        ([50, 30, 15, 5], [70, 30, 0, 0], [2, 3]),
        ([50, 30, 19, 1], [50, 30, 20, 0], []),  # one rare class of four
        ([50, 30, 15, 5], [100, 0, 0, 0], [1, 2, 3]),
        ([50, 50, 0, 0], [50, 50, 0, 0], []),  # classes that have no label are not lost
        ([0, 0, 0, 0], [1, 0, 0, 0], []),
        ([1, 1, 1, 1], [0, 0, 0, 0], []),
    ],
)
def test_lost_classes(labeled, pseudo, lost):
    assert health.lost_classes({"labeled": labeled, "pseudo": pseudo}) == lost


def test_a_collapse_is_told_once_in_words():
    pixels = {"labeled": [50, 30, 15, 5], "pseudo": [70, 30, 0, 0]}
    line, warned = health.warning(pixels, CLASSES, 0.5, (0.3, 0.3), [])
    assert line.startswith("the pseudo-labels are collapsing: car, sign: 20.0 % of the labelled pixels, but only 0.0 %")
    assert health.warning(pixels, CLASSES, 0.6, (0.3, 0.3), warned) == (None, warned)
    worse = {"labeled": [50, 30, 15, 5], "pseudo": [100, 0, 0, 0]}
    line, warned = health.warning(worse, CLASSES, 0.7, (0.3, 0.3), warned)
    assert "sky, car, sign" in line
    assert health.warning(pixels, CLASSES, 0.1, (0.3, 0.3), []) == (None, [])  # too early to tell
    well = {"labeled": [50, 30, 15, 5], "pseudo": [50, 30, 15, 5]}
    assert health.warning(well, CLASSES, 0.8, (0.3, 0.3), warned) == (None, [])


def test_a_fall_of_the_score_is_told_once():
    line, warned = health.warning({}, CLASSES, 0.5, (0.2, 0.4), [])
    assert line.startswith("validation mIoU fell from 40.0 % (kept as best) to 20.0 %")
    assert health.warning({}, CLASSES, 0.6, (0.1, 0.4), warned) == (None, warned)
    assert health.warning({}, CLASSES, 0.5, (0.39, 0.4), []) == (None, [])


@pytest.mark.parametrize("method", ["supervised", "pseudo-label", "allspark"])
def test_the_log_holds_the_health_of_a_run(config, tmp_path, method):
    config = apply_overrides(config, [f"method.name={method}", "train.epochs=3"])
    train(config, tmp_path / "run")
    rows = [row["health"] for row in read_log(tmp_path / "run") if "health" in row]
    assert len(rows) == 3
    assert "agreement" not in rows[0] and 0 <= rows[1]["agreement"] <= 1
    assert ("pseudo_share" in rows[0]) == (method != "supervised")
    assert sum(rows[-1]["labeled_share"].values()) == pytest.approx(1, abs=1e-4)
    assert ("memory_age" in rows[0]) == (method == "allspark")
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0].split(",")
    own = {"supervised": set(), "pseudo-label": {"pseudo_share ball"}}
    assert {"agreement", "iou ball"} | own.get(method, {"pseudo_share ball", "memory_age ball"}) <= set(header)


def test_a_run_without_validation_images_is_watched_too(config, tmp_path, tiny_folder):
    root = tmp_path / "data"
    shutil.copytree(tiny_folder, root)
    for name in ("val.txt", "train.txt"):
        (root / name).unlink(missing_ok=True)
    for mask in sorted((root / "masks").iterdir())[1:]:
        mask.unlink()
    config = apply_overrides(config, [f"data.root={root}", "train.health_images=3"])
    assert not open_source(config.data).val
    train(config, tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run") if "health" in row]
    assert len(rows) == 2 and "agreement" in rows[1]["health"] and "miou" not in rows[1]
