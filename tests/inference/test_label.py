"""Pseudo masks: what is written, how reliability is measured, and that nothing of others is touched."""

import csv
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from allspark.batch import IGNORE
from allspark.config.schema import EvalConfig
from allspark.data.pseudo import read_images, read_pseudo
from allspark.data.source import Sample, Source
from allspark.errors import ConfigError, DataError
from allspark.inference.label import Labeled, Labeller, label_images, reliable, stability, write_lists
from allspark.inference.predictor import Predictor
from tests.golden.arrays import Arrays
from tests.helpers import LogitsOf

NAMES = ["a b", "ä/ö", "c#d", "x"]


class Brightness(LogitsOf):
    """Three classes by brightness: dark, medium, bright."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, image):
        grey = image.mean(1, keepdim=True) + self.shift
        return torch.cat([-grey, 0.3 - grey.abs(), grey], 1) * 4


def predictor(shift=0.0):
    return Predictor(Brightness(shift), EvalConfig())


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "data set"
    rng = np.random.default_rng(0)
    samples = []
    for name in NAMES:
        path = root / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).resize((60, 40)).save(path)
        samples.append(Sample(name, path))
    palette = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    return Source(root, ("dark", "medium", "bright"), palette, unlabeled=tuple(samples[:3]), val=(samples[3],))


def labels_of(source, out, labeller, settings=None, **options):
    settings = {"by": "me"} if settings is None else settings
    return label_images(labeller, source.unlabeled, source, out, settings, max_pixels=10**7, **options)


def test_reliability_equals_the_official_selection():
    arrays = Arrays("peers/stpp_reliability")
    masks = arrays["pred_ckpt"].numpy().astype(np.uint8)  # checkpoints, images, H, W
    scores = [stability(list(masks[:, image]), int(arrays["n_classes"])) for image in range(masks.shape[1])]
    np.testing.assert_allclose(scores, arrays["out_score"], rtol=1e-10)
    labeled = [Labeled(str(place), "", 0.0, 1.0, score) for place, score in enumerate(scores)]
    assert {int(one.image) for one in reliable(labeled, 0.5)} == set(arrays["out_reliable"].tolist())
    rest = {one.image for one in labeled} - {one.image for one in reliable(labeled, 0.5)}
    assert {int(image) for image in rest} == set(arrays["out_unreliable"].tolist())


def test_stability_is_that_of_plain_loops():
    rng = np.random.default_rng(3)
    masks = [rng.integers(0, 3, (9, 7)).astype(np.uint8) for _ in range(4)]
    per_checkpoint = []
    for mask in masks[:3]:
        ious = []
        for k in range(6):  # three of them in neither
            union = ((mask == k) | (masks[3] == k)).sum()
            if union:
                ious.append(((mask == k) & (masks[3] == k)).sum() / union)
        per_checkpoint.append(np.mean(ious))
    assert stability(masks, 6) == pytest.approx(np.mean(per_checkpoint), rel=1e-12)


def test_masks_are_what_the_network_says_and_lists_can_be_read(source, tmp_path):
    out = tmp_path / "läbels here"
    found = labels_of(source, out, Labeller(predictor(), [predictor(0.3), predictor()], confidence=0.6))
    for one, sample in zip(found, source.unlabeled, strict=True):
        with Image.open(sample.image) as image:
            expected = predictor().predict(image.convert("RGB"))
        with Image.open(out / one.mask) as mask:
            assert mask.mode == "P"
            pixels = np.asarray(mask)
        assert np.array_equal(pixels, np.where(expected.confidence < 0.6, IGNORE, expected.mask))
        assert set(np.unique(pixels)) <= {0, 1, 2, IGNORE} and IGNORE in pixels
        assert one.confidence == pytest.approx(expected.confidence.mean(dtype=np.float64), abs=1e-12)
        assert one.kept == (pixels != IGNORE).mean() and 0 < one.stability < 1
    with (out / "reliability.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"images/{name}.jpg" for name in NAMES[:3]]
    assert [float(row["stability"]) for row in rows] == [one.stability for one in found]

    chosen = reliable(found, 0.7)
    assert len(chosen) == 2 and min(one.stability for one in chosen) >= min(one.stability for one in found)
    write_lists(found, chosen, out, out / "list.txt", [])
    listed = read_pseudo(out / "list.txt", source)
    assert {sample.id for sample in listed} == {sample.id for sample in source.unlabeled if _in(sample, chosen)}
    assert all(sample.mask.is_file() and sample.mask.is_relative_to(out) for sample in listed)
    assert [s.id for s in read_images(out / "rest.txt", source)] == [
        sample.id for sample in source.unlabeled if not _in(sample, chosen)
    ]
    moved = tmp_path / "elsewhere"
    out.rename(moved)  # list and masks stay together
    assert all(sample.mask.is_relative_to(moved) for sample in read_pseudo(moved / "list.txt", source))


def _in(sample, chosen):
    return f"images/{sample.id}.jpg" in {one.image for one in chosen}


def test_another_list_comes_first_and_keeps_its_masks(source, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = labels_of(source, one, Labeller(predictor()))
    write_lists(first, first[:1], one, one / "list.txt", [])
    before = [(first[0].image, one / first[0].mask)]
    second = labels_of(source, two, Labeller(predictor(1.0)))
    write_lists(second, second[1:], two, two / "list.txt", before)
    listed = read_pseudo(two / "list.txt", source)
    assert [sample.mask.is_relative_to(one) for sample in listed] == [True, False, False]


def test_what_is_done_is_not_done_again(source, tmp_path):
    out = tmp_path / "out"
    labels_of(source, out, Labeller(predictor()))
    whole = (out / "reliability.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    (out / "reliability.csv").write_bytes(b"".join(lines[:2]) + lines[2][:-3])  # killed in the middle of a line
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    steps = []
    found = labels_of(source, out, Labeller(predictor()), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(2, 3), (3, 3)] and len(found) == 3
    assert (out / "reliability.csv").read_bytes() == whole
    assert sum(times[path] == path.stat().st_mtime_ns for path in times) == 1
    assert all(a == b for a, b in pairwise([found, labels_of(source, out, Labeller(predictor()))]))
    with pytest.raises(ConfigError, match="labels that were made with by me, not you; choose another --out"):
        labels_of(source, out, Labeller(predictor()), {"by": "you"})


def test_a_mask_of_another_image_is_not_written_over(source, tmp_path):
    out = tmp_path / "out"
    one = labels_of(source, out, Labeller(predictor()))[0]
    before = (out / one.mask).read_bytes()
    other = replace(source.unlabeled[0], image=source.unlabeled[2].image.with_name("other.jpg"))
    other.image.write_bytes(source.unlabeled[2].image.read_bytes())
    with pytest.raises(ConfigError, match=r"a b\.png is the mask of images/a b\.jpg, not of images/other\.jpg"):
        labels_of(replace(source, unlabeled=(other,)), out, Labeller(predictor()))
    assert (out / one.mask).read_bytes() == before
    with lock_folder_elsewhere(out), pytest.raises(ConfigError, match="another process labels into this folder"):
        labels_of(source, out, Labeller(predictor()))


@contextmanager
def lock_folder_elsewhere(folder):
    code = "import sys, pathlib, allspark.files as f; lock = f.lock_folder(pathlib.Path(sys.argv[1])); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes) as process:
        process.stdout.readline()
        yield
        process.communicate("\n")


def test_a_folder_of_others_is_left_alone(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files"):
        labels_of(source, tmp_path, Labeller(predictor()))
    with pytest.raises(ConfigError, match=r"a file, but a folder is needed"):
        labels_of(source, tmp_path / "notes.txt", Labeller(predictor()))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_bad_image_is_named_or_passed_over(source, tmp_path):
    source.unlabeled[1].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"ö\.jpg: the file is empty"):
        labels_of(source, tmp_path / "out", Labeller(predictor()))
    said = []
    found = labels_of(source, tmp_path / "out", Labeller(predictor()), on_bad=said.append)
    assert [one.image for one in found] == ["images/a b.jpg", "images/c#d.jpg"] and len(said) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("images/x.jpg\tm.png", "is a validation image"),
        ("x m.png", "is a validation image"),
        ("a b\tn.png", "no mask .*n.png of 'a b'"),
        ("nowhere.jpg\tm.png", "no image .*nowhere.jpg"),
        ("a b", "expected an image, a tab and its mask"),
        ("# nothing", "the list is empty"),
    ],
)
def test_mistakes_in_a_list_are_one_line(source, tmp_path, line, words):
    Image.new("L", (60, 40)).save(tmp_path / "m.png")
    path = tmp_path / "list.txt"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        read_pseudo(path, source)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_spaces_may_stand_for_the_tab(source, tmp_path):
    Image.new("L", (60, 40)).save(tmp_path / "m n.png")
    (tmp_path / "list.txt").write_text("a b m n.png\nimages/ä/ö.jpg m n.png\n", encoding="utf-8")
    assert [sample.id for sample in read_pseudo(tmp_path / "list.txt", source)] == ["a b", "ä/ö"]


def test_test_time_augmentation_is_the_mean_over_sizes_and_mirrors():
    torch.manual_seed(0)
    image = np.random.default_rng(1).integers(0, 255, (21, 34, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network, total = Brightness(), 0
    resize = nn.functional.interpolate
    for scale in (0.5, 0.75, 1.0, 1.5, 2.0):
        scaled = resize((tensor - mean) / std, (int(21 * scale), int(34 * scale)), mode="bilinear", align_corners=True)
        for mirrored in (False, True):
            view = scaled.flip(3) if mirrored else scaled
            found = network(view).softmax(1).detach()
            total = total + resize(found.flip(3) if mirrored else found, (21, 34), mode="bilinear", align_corners=True)
    best, mask = (total / 10).max(1)
    found = predictor().predict(image, tta=True)
    np.testing.assert_allclose(found.confidence, best[0], rtol=1e-5)
    assert (found.mask == mask[0].numpy()).mean() > 0.999
