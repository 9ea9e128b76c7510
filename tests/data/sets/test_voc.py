"""PASCAL VOC in its true layout, with the published lists."""

import sys

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.check import check
from allspark.data.decode import read_sample
from allspark.data.image import read_mask
from allspark.data.sets import open_source
from allspark.data.sets.lists import Layout, find_files, read_list
from allspark.errors import DataError, UserError


@pytest.fixture
def devkit(tmp_path):
    """VOCdevkit/VOC2012: 6 images, 3 finely labelled, 2 from SBD, 1 for validation."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"2007_{i:06d}" for i in range(6)]
    for i, name in enumerate(names):
        Image.new("RGB", (10, 8)).save(root / "JPEGImages" / f"{name}.jpg")
        kind = "SegmentationClassAug" if i in (3, 4) else "SegmentationClass"
        Image.fromarray(np.full((8, 10), i, np.uint8)).save(root / kind / f"{name}.png")
    for part, members in {"train": names[:3], "train_aug": names[:5], "val": names[5:]}.items():
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(members) + "\n")
    return tmp_path / "VOCdevkit"


def ids(samples):
    return [sample.id[-1] for sample in samples]


@pytest.mark.parametrize("sub", ["", "VOC2012"])
def test_devkit_opens_at_either_level(devkit, sub):
    source = open_source(DataConfig(source="voc", root=devkit / sub))
    assert (ids(source.labeled), ids(source.unlabeled), ids(source.val)) == (["0", "1", "2"], ["3", "4"], ["5"])
    assert len(source.classes) == 21 and source.palette[15] == (192, 128, 128)  # person, as in the devkit


def test_published_lists_load_as_they_are(devkit):
    root = devkit / "VOC2012"
    line = "JPEGImages/2007_{0:06d}.jpg SegmentationClass/2007_{0:06d}.png\n"
    (devkit / "labeled.txt").write_text(line.format(1) + line.format(3))
    source = open_source(DataConfig(source="voc", root=root, labeled=devkit / "labeled.txt"))
    assert ids(source.labeled) == ["1", "3"] and ids(source.unlabeled) == ["0", "2", "4"]
    # The mask of an SBD image is found in the folder that has it.
    assert source.labeled[1].mask == root / "SegmentationClassAug" / "2007_000003.png"
    assert (read_mask(source.labeled[1].mask) == 3).all()


def test_missing_pieces_are_named(devkit):
    with pytest.raises(DataError, match=r"JPEGImages: no such folder"):
        open_source(DataConfig(source="voc", root=devkit / "VOC2012" / "ImageSets"))
    (devkit / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: no such file"):
        open_source(DataConfig(source="voc", root=devkit))


def test_real_images_and_their_lists(shared):
    root = shared / "data" / "voc-mini"
    source = open_source(DataConfig(source="voc", root=root))
    assert (len(source.labeled), len(source.unlabeled), len(source.val)) == (110, 50, 70)
    half = open_source(DataConfig(source="voc", root=root, split="mini/half", val="splits/mini/val.txt"))
    assert len(half.labeled) + len(half.unlabeled) == 160 and len(half.val) == 70


def test_all_published_partitions_of_voc_parse(shared, tmp_path):
    lists = sorted((shared / "splits" / "pascal").glob("*.txt"))
    assert len(lists) == 14
    names = {line.split()[0].split("/")[1] for path in lists for line in path.read_text().splitlines()}
    (tmp_path / "JPEGImages").mkdir()
    for name in names:
        (tmp_path / "JPEGImages" / name).touch()
    images = find_files(tmp_path / "JPEGImages")
    layout = Layout(tmp_path, images, {}, tmp_path / "JPEGImages", tmp_path / "SegmentationClass")
    for path in lists:
        samples = read_list(path, layout)
        assert len(samples) == len(path.read_text().splitlines())
        assert samples[0].mask == tmp_path / "SegmentationClass" / f"{samples[0].id}.png"


def test_all_published_partitions_of_other_data_sets_parse(shared, tmp_path):
    """The lists of Cityscapes and COCO, whose images lie elsewhere."""
    lists = sorted(path for name in ("cityscapes", "coco") for path in (shared / "splits" / name).glob("*.txt"))
    assert len(lists) == 13
    for path in lists:
        pairs = [line.split() for line in path.read_text().splitlines()]
        images = {pair[0].rsplit(".", 1)[0]: tmp_path / pair[0] for pair in pairs}
        samples = read_list(path, Layout(tmp_path, images, {}, tmp_path, tmp_path))
        assert [(s.image, s.mask) for s in samples] == [(tmp_path / image, tmp_path / mask) for image, mask in pairs]


def test_every_list_of_the_real_images_names_files_that_are_there(shared):
    root = shared / "data" / "voc-mini"
    lists = [*root.glob("ImageSets/Segmentation/*.txt"), *root.glob("splits/**/*.txt")]
    layout = Layout(
        root,
        find_files(root / "JPEGImages"),
        find_files(root / "SegmentationClass"),
        root / "JPEGImages",
        root / "SegmentationClass",
    )
    assert len(lists) == 7
    for path in lists:
        samples = read_list(path, layout)
        assert len(samples) == len(path.read_text().splitlines())
        assert all(sample.image.is_file() and sample.mask.is_file() for sample in samples)


def test_the_fine_mask_goes_before_the_merged_one(devkit):
    root = devkit / "VOC2012"
    Image.fromarray(np.full((8, 10), 20, np.uint8)).save(root / "SegmentationClassAug" / "2007_000001.png")
    source = open_source(DataConfig(source="voc", root=devkit))
    assert source.labeled[1].mask == root / "SegmentationClass" / "2007_000001.png"


def test_without_the_augmented_list_all_merged_masks_but_those_for_validation_train(devkit):
    root = devkit / "VOC2012"
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(root / "SegmentationClassAug" / "2007_000005.png")
    source = open_source(DataConfig(source="voc", root=devkit))
    assert (ids(source.labeled), ids(source.unlabeled), ids(source.val)) == (["0", "1", "2"], ["3", "4"], ["5"])


def write_sbd(path, mask):
    """A mask as SBD stores it."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Boundaries": np.zeros((20, 1), object), "Segmentation": mask, "CategoriesPresent": np.unique(mask)}
    savemat(path, {"GTcls": fields}, do_compression=True)


@pytest.mark.parametrize("home", ["VOC2012/benchmark_RELEASE/dataset", "benchmark_RELEASE/dataset", "SBD"])
def test_masks_of_sbd_are_read_as_they_are_published(devkit, home, capsys):
    root = devkit / "VOC2012"
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    mask = np.arange(80, dtype=np.uint8).reshape(8, 10) % 21
    for i in (0, 3, 4, 5):
        write_sbd(devkit / home / "cls" / f"2007_{i:06d}.mat", mask)
    lines = "JPEGImages/2007_{0:06d}.jpg SegmentationClass/2007_{0:06d}.png\n"
    (devkit / "labeled.txt").write_text(lines.format(3) + lines.format(0))
    source = open_source(DataConfig(source="voc", root=devkit, labeled=devkit / "labeled.txt"))
    assert (ids(source.labeled), sorted(ids(source.unlabeled))) == (["3", "0"], ["1", "2", "4"])
    assert ids(source.val) == ["5"]
    assert source.labeled[0].mask.suffix == ".mat" and source.labeled[1].mask.suffix == ".png"  # the fine one first
    _, read = read_sample(source.labeled[0], source, want_mask=True, max_pixels=100)
    assert np.array_equal(read, mask)
    for fast in (True, False):
        report = check(source, crop=None, max_pixels=100, workers=1, fast=fast)
        assert report.masks["labeled"] == 2 and not [f for f in report.findings if "mask" in f.kind]


def test_a_damaged_mask_of_sbd_is_one_line(devkit, monkeypatch):
    path = devkit / "SBD" / "cls" / "2007_000003.mat"
    with pytest.raises(DataError, match="no such file"):
        read_mask(path)
    write_sbd(path, np.zeros((8, 10), np.uint8))
    whole = path.read_bytes()
    for damaged in (b"", b"x", whole[:100], whole[:150], whole[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a mask of SBD, or damaged"):
            read_mask(path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"allspark\[sbd\]"):
        read_mask(path)


def test_fine_images_that_the_augmented_list_lacks_still_train(devkit):
    sets = devkit / "VOC2012" / "ImageSets" / "Segmentation"
    (sets / "train_aug.txt").write_text("2007_000003\n2007_000005\n")
    (devkit / "few.txt").write_text("2007_000000\n")
    source = open_source(DataConfig(source="voc", root=devkit, labeled=devkit / "few.txt"))
    assert sorted(ids(source.unlabeled)) == ["1", "2", "3"]  # 5 is kept for validation
    assert source.notes == ("1 validation image is kept out of training",)
