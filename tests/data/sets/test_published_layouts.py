"""Cityscapes, LoveDA and the published lists, over generated files in the true layouts."""

import numpy as np
import pytest

from allspark.config.schema import DataConfig
from allspark.data.decode import read_sample
from allspark.data.partitions import partition_of
from allspark.data.sets import open_source
from allspark.errors import DataError
from tests.fakes import FAKES

TRAINING = {"pascal": ("voc", 10582), "cityscapes": ("cityscapes", 2975)}


def touch(root, lists):
    """Every image and mask that the lists name, as empty files."""
    for path in lists:
        for line in path.read_text().split():
            (root / line).parent.mkdir(parents=True, exist_ok=True)
            (root / line).touch()


@pytest.mark.slow
@pytest.mark.parametrize("folder", TRAINING)
def test_every_published_list_gives_the_published_counts(shared, tmp_path, folder):
    lists = shared / "splits" / folder
    kind, training = TRAINING[folder]
    touch(tmp_path, [lists / ("train_aug.txt" if kind == "voc" else "train.txt"), lists / "val.txt"])
    if kind == "voc":
        (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
        for part, file in {"train": "1464", "train_aug": "train_aug", "val": "val"}.items():
            lines = (lists / f"{file}.txt").read_text().splitlines()
            text = "".join(f"{line.split('/')[2].split('.')[0]}\n" for line in lines)
            (tmp_path / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(text)
    found = {}
    for path in lists.glob("*.txt"):
        if path.stem.startswith(("train", "val")):
            continue
        source = open_source(DataConfig(source=kind, root=tmp_path, labeled=path, val=lists / "val.txt"))
        count = len(path.read_text().splitlines())
        assert (len(source.labeled), len(source.unlabeled)) == (count, training - count), path
        found[path.stem] = (str(partition_of(kind, source)), len(source.val))
    assert {val for _, val in found.values()} == {1449 if kind == "voc" else 500}
    assert len({name for name, _ in found.values()}) == len(found) == len(list(lists.glob("*.txt"))) - 2


@pytest.mark.parametrize("name", ["1_512", "1_32"])
def test_published_lists_of_coco(shared, tmp_path, name):
    lists = shared / "splits" / "coco"
    touch(tmp_path, [lists / "1_32.txt", lists / "1_512.txt", lists / "val.txt"])
    source = open_source(DataConfig(source="coco", root=tmp_path, labeled=lists / f"{name}.txt"))
    count = len((lists / f"{name}.txt").read_text().splitlines())
    everything = len(list((tmp_path / "train2017").iterdir()))
    assert (len(source.labeled), len(source.unlabeled), len(source.val)) == (count, everything - count, 5000)
    assert str(partition_of("coco", source)) == f"coco {name.replace('_', '/')}"


@pytest.mark.parametrize("kept", ["labelIds", "labelTrainIds"])
def test_a_list_of_cityscapes_loads_with_either_mask_on_disk(shared, tmp_path, kept):
    lists = shared / "splits" / "cityscapes"
    touch(tmp_path, [lists / "train.txt", lists / "val.txt"])
    for path in list(tmp_path.rglob("*_gtFine_labelTrainIds.png")):
        path.rename(path.with_name(path.name.replace("labelTrainIds", kept)))
    config = DataConfig(source="cityscapes", root=tmp_path, labeled=lists / "1_16.txt", val=lists / "val.txt")
    source = open_source(config)
    assert (len(source.labeled), len(source.unlabeled), len(source.val)) == (186, 2789, 500)
    assert {sample.mask.name.split("_")[-1] for sample in (*source.labeled, *source.val)} == {f"{kept}.png"}


def test_label_ids_of_cityscapes_become_the_19_classes(tmp_path):
    FAKES["cityscapes"](tmp_path / "cs")
    source = open_source(DataConfig(source="cityscapes", root=tmp_path / "cs"))
    assert (len(source.labeled), len(source.unlabeled), len(source.val)) == (6, 4, 3)
    names = {sample.mask.name.split("_")[-1] for sample in source.labeled}
    assert names == {"labelIds.png"}
    seen = set()
    for sample in source.labeled:
        _, mask = read_sample(sample, source, want_mask=True, max_pixels=1 << 20)
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 2, 13, 18, 255}  # road, building, car, bicycle; ego vehicle, out of roi, licence plate
    # The same frames through the other file.
    val = source.val[0]
    _, mask = read_sample(val, source, want_mask=True, max_pixels=1 << 20)
    other = val.mask.with_name(val.mask.name.replace("labelTrainIds", "labelIds"))
    assert val.mask.name.endswith("labelTrainIds.png") and other.is_file()
    val.mask.unlink()
    again = open_source(DataConfig(source="cityscapes", root=tmp_path / "cs"))
    assert again.val[0].mask == other
    assert np.array_equal(read_sample(again.val[0], again, want_mask=True, max_pixels=1 << 20)[1], mask)


def test_no_data_of_loveda_is_ignored(tmp_path):
    FAKES["loveda"](tmp_path / "x")
    source = open_source(DataConfig(source="loveda", root=tmp_path / "x"))
    assert [len(part) for part in (source.labeled, source.unlabeled, source.val)] == [4, 6, 3]
    seen = set()
    for sample in source.labeled:
        seen |= set(np.unique(read_sample(sample, source, want_mask=True, max_pixels=1 << 20)[1]).tolist())
    assert seen == {255, 0, 1, 6} and source.classes[6] == "agricultural"


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("cityscapes", "leftImg8bit"), ("coco", "train2017"), ("loveda", "Train"), ("potsdam", "tiles")],
)
def test_the_folder_that_is_missing_is_named(tmp_path, kind, folder):
    with pytest.raises(DataError, match=folder):
        open_source(DataConfig(source=kind, root=tmp_path))
