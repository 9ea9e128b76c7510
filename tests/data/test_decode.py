"""Decoded samples: kept, and read in order a few ahead; a bad file ends in one line in its turn."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.decode import KeptSamples, eval_items, prefetch, read_sample
from allspark.data.sets.folder import open_folder
from allspark.data.source import Sample
from allspark.errors import DataError


@pytest.fixture
def source(tiny_folder):
    return open_folder(DataConfig(root=tiny_folder))


def test_what_fits_is_kept_and_the_rest_is_read_again():
    """An image of 10 x 10 with its mask takes 500 bytes: two of three fit in 1,200."""
    kept, read = KeptSamples(1_200), []

    def decode(name):
        read.append(name)
        return Image.new("RGB", (10, 10), name), np.zeros((10, 10), np.uint8)

    for _ in range(2):
        for name in ("red", "green", "blue"):
            image, _ = kept.get(Sample(name, name), lambda name=name: decode(name))
            assert image.getpixel((0, 0)) == Image.new("RGB", (1, 1), name).getpixel((0, 0))
    assert read == ["red", "green", "blue", "blue"]


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 0), (1, 2), (3, 6), (3, 100)])
def test_prefetched_results_come_in_the_order_of_their_jobs(workers, ahead):
    def slow_at_first(job):
        time.sleep(0.02 / (1 + job))
        return job * job

    assert list(prefetch(range(20), slow_at_first, workers, ahead)) == [job * job for job in range(20)]
    assert list(prefetch([], slow_at_first, workers, ahead)) == []


def test_prefetch_begins_only_as_many_jobs_as_it_may():
    begun = []
    with closing(prefetch(range(100), begun.append, 2, ahead=3)) as results:
        assert begun == []  # nothing before the first result is asked for
        for asked in range(1, 6):
            next(results)
            time.sleep(0.02)
            assert len(begun) <= asked + 3


def test_an_error_comes_in_the_turn_of_its_job():
    def divide(job):
        return 6 // job

    results = prefetch([3, 2, 0, 1], divide, 2, ahead=4)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_closing_drops_the_jobs_not_begun_and_leaves_no_thread():
    begun, gate = [], threading.Event()

    def wait(job):
        begun.append(job)
        if job:
            gate.wait(5)

    before = threading.active_count()
    results = prefetch(range(100), wait, 1, ahead=50)
    next(results)
    threading.Timer(0.05, gate.set).start()
    results.close()
    assert len(begun) <= 2
    time.sleep(0.1)
    assert threading.active_count() == before


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
    read = []

    def counted(sample, *arguments, **options):
        read.append(sample.id)
        return read_sample(sample, *arguments, **options)

    monkeypatch.setattr("allspark.data.decode.read_sample", counted)
    items = eval_items(source.val * 20, source, workers=2, max_pixels=10_000)
    next(items)
    time.sleep(0.1)
    assert len(read) <= 5
    items.close()
    assert len(read) <= 7


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_error_names_the_file_in_its_turn(source, tmp_path, workers):
    bad = tmp_path / "half.png"
    bad.write_bytes(source.val[0].image.read_bytes()[:200])
    samples = (source.val[1], replace(source.val[0], image=bad), source.val[2])
    items = eval_items(samples, source, workers=workers, max_pixels=10_000)
    assert next(items)[0] is samples[0]
    with pytest.raises(DataError, match=r"half\.png"):
        next(items)
    errors = []
    items = eval_items(samples, source, workers=workers, max_pixels=10_000, on_bad=errors.append)
    assert [sample for sample, _, _ in items] == [samples[0], samples[2]]
    assert ["half.png" in str(error) for error in errors] == [True]
