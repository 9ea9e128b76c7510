"""What every data set promises. A new one is picked up from SOURCES."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from allspark.config import DataConfig
from allspark.data import SOURCES, open_source
from allspark.data.image import read_mask
from allspark.errors import DataError


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, tiny_folder):
    """Each source over generated images in its own layout."""
    if request.param != "voc":
        return open_source(DataConfig(source=request.param, root=tiny_folder))
    tiny = open_source(DataConfig(root=tiny_folder))
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for sample in (*tiny.labeled, *tiny.unlabeled, *tiny.val):
        with Image.open(sample.image) as image:
            image.save(tmp_path / "JPEGImages" / f"{sample.id}.jpg")
        if sample.mask:
            (tmp_path / "SegmentationClass" / f"{sample.id}.png").symlink_to(sample.mask)
    everything = (*tiny.labeled, *tiny.unlabeled)
    for name, samples in {"train": tiny.labeled, "train_aug": everything, "val": tiny.val}.items():
        text = "".join(f"{sample.id}\n" for sample in samples)
        (tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)
    return open_source(DataConfig(source="voc", root=tmp_path))


def test_the_configuration_names_every_source():
    assert set(get_args(DataConfig.model_fields["source"].annotation)) == set(SOURCES)


def test_ids_are_unique_and_files_exist(source):
    for samples in (source.labeled, source.unlabeled, source.val):
        assert samples and len({sample.id for sample in samples}) == len(samples)
        assert all(sample.image.is_file() for sample in samples)
    training = {sample.id for sample in (*source.labeled, *source.unlabeled)}
    assert not training & {sample.id for sample in source.val}
    assert not {s.id for s in source.labeled} & {s.id for s in source.unlabeled}


def test_masks_fit_images_and_classes(source):
    for sample in (*source.labeled, *source.val):
        mask = read_mask(sample.mask)
        assert set(np.unique(mask)) <= {*range(source.num_classes), source.ignore}
        with Image.open(sample.image) as image:
            assert mask.shape == (image.height, image.width)


def test_every_class_has_a_colour_of_its_own(source):
    assert len(source.palette) == len(source.classes) == len(set(source.palette)) == source.num_classes


def test_paths_lie_in_the_root_and_opening_again_gives_the_same(source, request):
    for sample in (*source.labeled, *source.unlabeled, *source.val):
        assert sample.image.is_relative_to(source.root)
    kind = request.node.callspec.params["source"]
    assert open_source(DataConfig(source=kind, root=source.root)) == source


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_without_a_folder_is_one_clear_line(kind, tmp_path):
    for root in (None, *([] if kind == "synthetic" else [tmp_path / "gone", tmp_path])):
        with pytest.raises(DataError) as caught:
            open_source(DataConfig(source=kind, root=root))
        assert "\n" not in str(caught.value) and ("data.root" if root is None else str(root)) in str(caught.value)
