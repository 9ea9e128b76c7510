"""The generated data set: the same everywhere, what it promises to contain, whole or not at all."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.image import read_image, read_mask
from allspark.data.sets.folder import open_folder
from allspark.data.sets.scenes import CLASSES, PALETTE, RING, draw_scene
from allspark.data.sets.synthetic import generate, open_synthetic
from allspark.errors import DataError


def pixels(root):
    """Every file's decoded content: PNG bytes may differ between zlib builds, pixels may not."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.suffix == ".png":
            found[str(path.relative_to(root))] = np.asarray(Image.open(path)).tobytes()
        elif path.is_file():
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def scene(seed=0, size=(96, 128), ring=False):
    return draw_scene(np.random.default_rng(seed), size, ring=ring)


def test_same_seed_same_files_other_seed_other_pictures(tmp_path):
    counts = {"labeled": 2, "unlabeled": 2, "val": 1, "size": (24, 32)}
    generate(tmp_path / "a", **counts, seed=3)
    generate(tmp_path / "b", **counts, seed=3)
    generate(tmp_path / "c", **counts, seed=4)
    a, b, c = (pixels(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a if name.startswith("images/"))


def test_pixels_are_these_on_every_machine():
    """A new digest means that everybody's generated data changes: wanted or not, say so in the changelog."""
    image, mask = scene(seed=11, size=(24, 32), ring=True)
    digest = hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
    assert digest == "6c86c17f6c2f2ffecbd5cf4e817f8199634ba7d7f830353bb9f6a32736904dfc"


def test_more_scenes_leave_the_first_ones_as_they_are(tmp_path):
    generate(tmp_path / "few", labeled=1, unlabeled=1, val=1, size=(24, 32))
    generate(tmp_path / "many", labeled=3, unlabeled=2, val=2, size=(24, 32))
    few, many = pixels(tmp_path / "few"), pixels(tmp_path / "many")
    images = {name for name in few if name.endswith(".png")}
    assert images and all(few[name] == many[name] for name in images)


def test_opens_as_a_folder_with_labelled_unlabelled_and_validation_images(tiny_folder):
    source = open_folder(DataConfig(root=tiny_folder))
    assert (len(source.labeled), len(source.unlabeled), len(source.val)) == (4, 6, 3)
    assert source.classes == CLASSES and source.palette == PALETTE and source.num_classes == 6
    assert all(sample.mask is None for sample in source.unlabeled)
    assert not list((tiny_folder / "masks").glob("unlabeled*"))
    for sample in (*source.labeled, *source.val):
        mask = read_mask(sample.mask, num_classes=6)
        assert (mask.shape[1], mask.shape[0]) == read_image(sample.image).size == (80, 64)


def test_open_synthetic_generates_once(tmp_path, monkeypatch):
    import allspark.data.sets.synthetic as module

    calls = []

    def small(root):
        calls.append(root)
        generate(root, labeled=2, unlabeled=2, val=1, size=(24, 32))

    monkeypatch.setattr(module, "generate", small)
    config = DataConfig(source="synthetic", root=tmp_path / "deep" / "scenes")
    first, second = open_synthetic(config), open_synthetic(config)
    assert first == second and calls == [config.root]


def test_a_process_that_comes_second_uses_what_the_first_one_made(tmp_path, monkeypatch):
    import allspark.data.sets.synthetic as module

    def beaten(root):
        generate(root, labeled=2, unlabeled=2, val=1, size=(24, 32))
        generate(root)

    monkeypatch.setattr(module, "generate", beaten)
    assert len(open_synthetic(DataConfig(source="synthetic", root=tmp_path / "scenes")).labeled) == 2


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not an empty folder"):
        generate(tmp_path)
    with pytest.raises(DataError, match="images: no such folder"):
        open_synthetic(DataConfig(source="synthetic", root=tmp_path))
    with pytest.raises(DataError, match=r"letter\.txt is not an empty folder"):
        generate(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    import allspark.data.sets.synthetic as module

    drawn = []

    def full_disk(rng, size, *, ring):
        drawn.append(ring)
        if len(drawn) == 3:
            raise OSError("No space left on device")
        return draw_scene(rng, size, ring=ring)

    monkeypatch.setattr(module, "draw_scene", full_disk)
    with pytest.raises(OSError, match="No space"):
        generate(tmp_path / "scenes", labeled=5, size=(24, 32))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    generate(tmp_path / "scenes", labeled=1, unlabeled=1, val=1, size=(24, 32))
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", labeled=1, unlabeled=1, val=1, size=(24, 32))
    assert pixels(tmp_path / "scenes") == pixels(tmp_path / "empty")


def test_class_balance_every_class_appears_and_the_ring_is_rare():
    rng = np.random.default_rng(0)
    masks = [draw_scene(rng, (48, 64), ring=index % 5 == 0)[1] for index in range(100)]
    share = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=6) / (100 * 48 * 64)
    assert share[0] > 0.4 and share[1] > 0.15
    assert (share[2:5] > 0.02).all()
    assert 0.003 < share[RING] < 0.02
    assert 12 <= sum((mask == RING).any() for mask in masks) <= 20
    assert not any((mask == RING).any() for index, mask in enumerate(masks) if index % 5)


def test_colour_alone_does_not_tell_the_class():
    """Even the best rule from a pixel's colour to a class, made with these very pixels, does poorly on the things."""
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng, (48, 64), ring=index % 5 == 0) for index in range(150)]
    colours = np.concatenate([image.reshape(-1, 3) for image, _ in scenes]) // 16
    truth = np.concatenate([mask.ravel() for _, mask in scenes]).astype(int)
    cell = colours.astype(int) @ [256, 16, 1]
    seen = np.bincount(cell * 6 + truth, minlength=4096 * 6).reshape(4096, 6)
    guess = seen.argmax(axis=1)[cell]
    both = np.bincount(truth * 6 + guess, minlength=36).reshape(6, 6)
    hits = np.diag(both)
    iou = hits / (both.sum(axis=0) + both.sum(axis=1) - hits)
    assert iou[2:].max() < 0.55


@pytest.mark.parametrize("size", [(16, 16), (33, 71), (120, 40), (1, 1)])
def test_any_size(size):
    image, mask = scene(size=size, ring=True)
    assert image.shape == (*size, 3) and mask.shape == size
    assert image.dtype == mask.dtype == np.uint8 and mask.max() < 6
