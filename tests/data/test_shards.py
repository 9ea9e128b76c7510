"""Unlabelled images in tar files: read in place, in an order that any place can be resumed from."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from allspark.cli.app import main
from allspark.config.files import apply_overrides
from allspark.config.schema import DataConfig
from allspark.data.check import check
from allspark.data.image import read_image
from allspark.data.order import _scattered, index_at
from allspark.data.sets import open_source
from allspark.data.shards import Shards, find_shards
from allspark.engine.bar import Bar
from allspark.engine.sinks import read_log
from allspark.errors import ConfigError, DataError
from tests.conftest import TINY
from tests.helpers import StopAfter, stream_of


def picture(value, kind="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (70, 66), (value % 256, value // 256, 7)).save(content, kind)
    return content.getvalue()


def write(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def pool(tmp_path):
    """Three tar files of 5, 1 and 7 images, each with labels beside them that do not count."""
    folder = tmp_path / "ein Pool"
    folder.mkdir()
    value = 0
    for number, count in enumerate((5, 1, 7)):
        members = []
        for i in range(count):
            members += [(f"{i:03d}.png", picture(value)), (f"{i:03d}.json", b"{}"), (f"{i:03d}.cls", b"3")]
            value += 1
        write(folder / f"pool-{number}.tar", members)
    return folder


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_found_and_read_in_place(tmp_path, form):
    long = (
        "/".join(["ein sehr langer Ordner"] * 5 + ["bild.jpg"])
        if form != tarfile.USTAR_FORMAT
        else "a" * 60 + "/" + "b" * 60 + ".jpg"
    )
    names = ["a.png", "ordner/süß 1.PNG", long, "b.tiff"]
    kinds = ["PNG", "PNG", "JPEG", "TIFF"]
    members = [(name, picture(i, kind)) for i, (name, kind) in enumerate(zip(names, kinds, strict=True))]
    write(tmp_path / "x.tar", [("notes.txt", b"x"), *members, (".hidden.png", b"x"), ("ordner/.ds.jpg", b"y")], form)
    with tarfile.open(tmp_path / "x.tar", "a", format=form) as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    shards = Shards([tmp_path / "x.tar"])
    assert [sample.id for sample in shards] == [f"x/{os.path.splitext(name)[0]}" for name in names]
    for i, sample in enumerate(shards):
        assert sample.mask is None and sample.image.read_bytes() == members[i][1]
        assert str(sample.image) == f"{tmp_path / 'x.tar'}/{names[i]}"
        assert abs(np.asarray(read_image(sample.image))[0, 0, 0].astype(int) - i) <= 3


def test_a_pool_is_a_sequence(pool):
    shards = Shards(find_shards(pool))
    assert len(shards) == 13 and shards[-1].id == "pool-2/006" and shards[5].id == "pool-1/000"
    assert [sample.id for sample in shards[4:7]] == ["pool-0/004", "pool-1/000", "pool-2/000"]
    assert [int(np.asarray(read_image(sample.image))[0, 0, 0]) for sample in shards] == list(range(13))
    with pytest.raises(IndexError):
        shards[13]
    assert find_shards(pool / "pool-[02].tar") == (pool / "pool-0.tar", pool / "pool-2.tar")
    assert find_shards(pool / "pool-1.tar") == (pool / "pool-1.tar",)
    assert (
        find_shards(pool / "none.tar") is find_shards(pool / "no*.tar") is find_shards(pool.parent / "list.txt") is None
    )


def test_the_index_is_made_once_and_again_when_the_tar_changes(pool, monkeypatch):
    from allspark.data import shards as module

    scan, scanned = module._scan, []
    monkeypatch.setattr(module, "_scan", lambda path: (scanned.append(path.name), scan(path))[1])
    first = Shards(find_shards(pool))
    assert scanned == ["pool-0.tar", "pool-1.tar", "pool-2.tar"] and sorted(p.name for p in pool.glob("*.index")) == [
        f"pool-{i}.tar.index" for i in range(3)
    ]
    assert Shards(find_shards(pool)) == first and len(scanned) == 3
    write(pool / "pool-1.tar", [("x.png", picture(1)), ("y.png", picture(2))])
    changed = Shards(find_shards(pool))
    assert scanned[3:] == ["pool-1.tar"] and len(changed) == 14 and changed.fingerprint != first.fingerprint
    for damage in (b"", b"x", (pool / "pool-0.tar.index").read_bytes()[:-1]):
        (pool / "pool-0.tar.index").write_bytes(damage)
        assert Shards(find_shards(pool)) == changed


def test_beside_a_tar_that_may_not_be_written_to_the_cache_holds_the_index(pool, tmp_path, monkeypatch):
    from allspark.data import shards as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = module.atomic_write

    def refuses(path, *args):
        if path.parent == pool:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args)

    monkeypatch.setattr(module, "atomic_write", refuses)
    assert len(Shards(find_shards(pool))) == 13
    assert len(list((tmp_path / "cache" / "allspark").iterdir())) == 3 and not list(pool.glob("*.index"))
    monkeypatch.setattr(module, "atomic_write", lambda path, *args: refuses(pool / "x"))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"pool-0.tar: an index of it can be written neither beside it nor to"):
        Shards(find_shards(pool))


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../out.png", "a/../../b.png"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    write(tmp_path / "x.tar", [("a.png", picture(1)), (name, picture(2))])
    with pytest.raises(DataError, match=r"x.tar: refused, the name '.*' in it leaves the folder"):
        Shards([tmp_path / "x.tar"])


def test_what_is_no_tar_is_named(tmp_path, pool):
    whole = (pool / "pool-0.tar").read_bytes()
    for content, words in (
        (b"", "not a tar file"),
        (b"x" * 2000, "not a tar file, or damaged at byte 0"),
        (whole[:600], "ends in the middle of a file"),
        (whole[:512].replace(b"000.png", b"001.png") + whole[512:], "damaged at byte 0"),
        (b"\0" * 2048, "holds no image"),
    ):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(DataError, match=f"bad.tar: .*{words}") as caught:
            Shards([tmp_path / "bad.tar"])
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"gone.tar: No such file"):
        Shards([tmp_path / "gone.tar"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_tars_end_in_the_documented_error(tmp_path, pool, data):
    content = bytearray((pool / "pool-0.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    (tmp_path / "bad.tar").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for sample in Shards([tmp_path / "bad.tar"]):
            read_image(sample.image, 10**6)
    except DataError as error:
        assert "\n" not in str(error) and "bad.tar" in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_indices_end_in_the_documented_error(pool, data):
    tar, index = pool / "pool-2.tar", pool / "pool-2.tar.index"
    index.unlink(missing_ok=True)
    Shards([tar])
    content = bytearray(index.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    index.write_bytes(content)
    try:
        for sample in Shards([tar]):
            read_image(sample.image, 10**6)
    except DataError as error:
        assert "\n" not in str(error) and "pool-2.tar" in str(error)


def config_of(order, buffer=4096):
    return DataConfig(unlabeled_order=order, shuffle_buffer=buffer)


@pytest.mark.parametrize(("order", "buffer"), [("random", 1), ("sharded", 1), ("sharded", 4), ("sharded", 100)])
def test_every_image_has_one_place_in_each_epoch(pool, order, buffer):
    shards, config = Shards(find_shards(pool)), config_of(order, buffer)
    orders = [tuple(index_at(place, shards, config, 5, 1, epoch) for place in range(13)) for epoch in range(20)]
    assert all(sorted(places) == list(range(13)) for places in orders)
    assert len(set(orders)) > 5
    assert orders[3] == tuple(index_at(place, shards, config, 5, 1, 3) for place in range(13))


def test_a_sharded_pass_reads_one_tar_after_the_other(pool):
    shards = Shards(find_shards(pool))
    for epoch in range(20):
        places = [index_at(place, shards, config_of("sharded", 1), 5, 1, epoch) for place in range(13)]
        archives = [shards[i].image.archive for i in places]
        assert sum(a != b for a, b in pairwise(archives)) == 2
        offsets = Counter(archives)
        assert sorted(offsets.values()) == [1, 5, 7]
        assert all(a < b for (a, x), (b, y) in pairwise(zip(places, archives, strict=True)) if x == y)
    for epoch in range(5):  # with a buffer, no image is further from its place than the buffer is long
        mixed = [index_at(place, shards, config_of("sharded", 4), 5, 1, epoch) for place in range(13)]
        plain = [index_at(place, shards, config_of("sharded", 1), 5, 1, epoch) for place in range(13)]
        assert mixed != plain and all(abs(plain.index(image) - place) < 4 for place, image in enumerate(mixed))


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 4097])
def test_the_order_of_very_many_images_needs_no_table(count):
    keys = (3, 2**63, 17, 5, 1, 9)
    order = [_scattered(place, count, keys) for place in range(count)]
    assert sorted(order) == list(range(count))
    if count > 999:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.1
        assert order != [_scattered(place, count, (4, *keys[1:])) for place in range(count)]


@pytest.fixture
def training(tiny_config, tiny_folder, pool):
    return apply_overrides(tiny_config, [f"data.root={tiny_folder}", f"data.unlabeled={pool}"])


@pytest.mark.parametrize("order", ["random", "sharded"])
def test_training_sees_the_pool(training, order):
    config = apply_overrides(training, [f"data.unlabeled_order={order}"])
    source = open_source(config.data)
    assert len(source.unlabeled) == 13 and len(source.labeled) == 4 and len(source.val) == 3
    stream = stream_of(source, config)
    seen = Counter(name for step in range(13) for name in stream[step].unlabeled.ids)
    assert seen == {sample.id: 2 for sample in source.unlabeled}


def test_check_looks_into_the_pool(training, pool):
    write(pool / "pool-3.tar", [("broken.png", picture(3)[:20])])
    source = open_source(training.data)
    for fast in (True, False):
        report = check(source, crop=None, max_pixels=10**6, workers=1, fast=fast)
        (finding,) = [finding for finding in report.findings if finding.level == "error"]
        assert finding.kind == "unreadable" and "pool-3.tar/broken.png" in finding.details[0]
        assert report.counts["unlabeled"] == 14


def test_large_images_in_a_pool_are_refused_undecoded(training, pool):
    config = apply_overrides(training, ["data.max_pixels=4000"])
    error = stream_of(open_source(config.data), config)._read
    with pytest.raises(DataError, match=r"pool-\d.tar/\d+.png: 70 x 66 pixels are more than data.max_pixels = 4000"):
        error("unlabeled", 0, [])


@pytest.mark.parametrize("order", ["random", "sharded"])
def test_a_run_over_a_pool_is_the_same_by_any_workers_and_after_a_stop(tiny_folder, pool, tmp_path, order, monkeypatch):
    changes = [*TINY, f"data.unlabeled={pool}", f"data.unlabeled_order={order}", "data.shuffle_buffer=3"]
    options = [part for change in changes for part in ("--set", change)]
    command = ["train", "--recipe", "folder", "--data", str(tiny_folder), *options]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--out", str(tmp_path / "workers"), "--set", "data.workers=2"]) == 0
    stop, advance = StopAfter(3, lambda: os.kill(os.getpid(), 15)), Bar.advance
    monkeypatch.setattr(Bar, "advance", lambda bar, step: (advance(bar, step), stop.advance(step)))
    assert main([*command, "--out", str(tmp_path / "parts")]) == 143
    assert main(["train", "--out", str(tmp_path / "parts"), "--resume"]) == 0
    losses = [
        [row["loss"] for row in read_log(tmp_path / name) if "loss" in row] for name in ("whole", "workers", "parts")
    ]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 4
    write(pool / "pool-9.tar", [("x.png", picture(1))])
    assert main(["train", "--out", str(tmp_path / "parts"), "--resume"]) == 2  # not the images it began with


def test_options_that_do_not_fit_are_one_line(training, pool, tiny_folder):
    config = apply_overrides(training, ["data.unlabeled=null", "data.unlabeled_order=sharded"])
    with pytest.raises(ConfigError, match="sharded is for tar files"):
        stream_of(open_source(config.data), config)
    with pytest.raises(DataError, match=r"data.unlabeled: no such list or tar file .*none.tar"):
        open_source(DataConfig(root=tiny_folder, unlabeled=pool / "none.tar"))


def test_a_pattern_is_meant_from_where_it_was_given(pool, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(pool.parent)
    options = [part for change in TINY for part in ("--set", change)]
    command = ["train", "--recipe", "folder", "--data", str(tiny_folder), "--unlabeled", f"{pool.name}/pool-[01].tar"]
    assert main([*command, "--out", str(tmp_path / "run"), *options]) == 0
    monkeypatch.chdir("/")
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0


@pytest.mark.parametrize("size", [b"-0000001000\0", b"+0000001000\0", b"0000_001000\0"])
def test_a_size_is_digits(tmp_path, size):
    """A negative one would be read over and over."""
    path = tmp_path / "x.tar"
    write(path, [("a.png", picture(1))], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar: not a tar file, or damaged at byte 0"):
        Shards([path])


@pytest.mark.parametrize("size", ["-1", "-1000000", "1e3", "9" * 30])
def test_an_extended_size_is_digits_too(tmp_path, size):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = 10, {"size": size}
        tar.addfile(info, io.BytesIO(bytes(10)))
    with pytest.raises(DataError, match=r"x\.tar: (damaged|ends in the middle)"):
        Shards([path])
