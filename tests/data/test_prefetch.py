"""Evaluation reads in order, a few ahead; a bad file ends in one line in its turn."""

import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.decode import read_sample
from allspark.data.prefetch import eval_items
from allspark.data.sets.folder import open_folder
from allspark.errors import DataError


@pytest.fixture
def source(tiny_folder):
    return open_folder(DataConfig(root=tiny_folder))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_eval_items_come_in_order_with_their_files_content(source, workers):
    samples = (*source.val, *source.labeled)
    found = list(eval_items(samples, source, workers=workers, max_pixels=10_000))
    assert tuple(sample for sample, _, _ in found) == samples
    for sample, image, mask in found:
        np.testing.assert_array_equal(image, np.asarray(Image.open(sample.image)))
        np.testing.assert_array_equal(mask, np.asarray(Image.open(sample.mask)))
        assert image.dtype == mask.dtype == np.uint8


def test_eval_items_read_only_a_few_ahead(source, monkeypatch):
    import allspark.data.prefetch as module

    read = []

    def counted(sample, *arguments, **options):
        read.append(sample.id)
        return read_sample(sample, *arguments, **options)

    monkeypatch.setattr(module, "read_sample", counted)
    items = eval_items(source.val * 20, source, workers=2, max_pixels=10_000)
    next(items)
    time.sleep(0.1)
    assert len(read) <= 5
    items.close()
    assert len(read) <= 7


def test_eval_error_names_the_file_in_its_turn(source, tmp_path):
    bad = tmp_path / "half.png"
    bad.write_bytes(source.val[0].image.read_bytes()[:200])
    samples = (source.val[1], replace(source.val[0], image=bad), source.val[2])
    items = eval_items(samples, source, workers=2, max_pixels=10_000)
    assert next(items)[0] is samples[0]
    with pytest.raises(DataError, match=r"half\.png"):
        next(items)
