"""Partitions: reproducible, complete, and rare classes kept when asked."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.image import write_mask
from allspark.data.sets import open_source
from allspark.data.splits import make_split
from allspark.errors import DataError, UserError


@pytest.fixture
def root(tmp_path):
    """40 labelled images, of which number 17 alone holds class 2; 8 without a mask; 2 for validation."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(50):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{i:02d}.png")
        if i < 42:
            mask = np.zeros((4, 4), np.uint8)
            mask[0, 0] = 2 if i == 17 else 1
            Image.fromarray(mask).save(tmp_path / "masks" / f"{i:02d}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nrare\n")
    (tmp_path / "val.txt").write_text("40\n41\n")
    return tmp_path


def split(root, *args, **kwargs):
    return make_split(open_source(DataConfig(root=root), require_labels=False), *args, **kwargs)


def lines(result, role):
    return (result.folder / f"{role}.txt").read_text().split()


def test_a_fraction_is_one_of_all_training_images(root):
    result = split(root, "1/8", 0)
    assert (result.labeled, result.unlabeled) == (6, 42)
    labeled, unlabeled = set(lines(result, "labeled")), set(lines(result, "unlabeled"))
    assert not labeled & unlabeled and len(labeled | unlabeled) == 48 and not {"40", "41"} & (labeled | unlabeled)
    assert max(map(int, labeled)) < 40


def test_the_same_seed_gives_the_same_lists(root, tmp_path_factory):
    first = split(root, "1/8", 3)
    again = split(root, "1/8", 3)
    assert lines(first, "labeled") == lines(again, "labeled")
    assert lines(split(root, "1/8", 4), "labeled") != lines(first, "labeled")


def test_seed_0_is_the_same_on_every_machine(root):
    assert lines(split(root, "3", 0), "labeled") == ["10", "16", "31"]


def test_stratified_keeps_the_rare_class(root):
    plain = [seed for seed in range(20) if "17" in lines(split(root, "4", seed), "labeled")]
    assert len(plain) < 20
    for seed in range(20):
        result = split(root, "4", seed, stratified=True)
        assert "17" in lines(result, "labeled") and result.labeled == 4 and result.missing_classes == ()


def test_classes_that_cannot_be_kept_are_named(root):
    result = split(root, "1", 0, stratified=True)
    assert result.missing_classes == ("b",)  # the one image is that of the rarest class


def test_a_split_opens_by_its_name(root):
    result = split(root, "0.25", 0, name="ein Viertel")
    source = open_source(DataConfig(root=root, split="ein Viertel"))
    assert [s.id for s in source.labeled] == lines(result, "labeled") and len(source.val) == 2
    assert len(source.unlabeled) == result.unlabeled


def test_another_split_is_not_overwritten(root):
    result = split(root, "1/8", 0, name="x")
    before = lines(result, "labeled")
    with pytest.raises(DataError, match="is another split"):
        split(root, "1/8", 1, name="x")
    assert lines(result, "labeled") == before


@pytest.mark.parametrize("labeled", ["0", "1/0", "a", "9/8", "-1/8", "41", "-3"])
def test_impossible_amounts_are_refused(root, labeled):
    with pytest.raises(UserError, match=f"--labeled {labeled}"):
        split(root, labeled)
    assert not (root / "splits").exists()


def test_an_unreadable_mask_is_named_and_nothing_is_written(root):
    (root / "masks" / "05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"05\.png: the file is empty"):
        split(root, "4", stratified=True)
    assert not (root / "splits").exists()


def test_a_list_in_the_way_that_is_no_text_is_not_overwritten(root):
    folder = root / "splits" / "x"
    folder.mkdir(parents=True)
    (folder / "unlabeled.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"unlabeled\.txt exists and is another split"):
        split(root, "4", name="x")
    assert [path.name for path in folder.iterdir()] == ["unlabeled.txt"]


def test_the_name_says_how_a_split_was_made(root):
    assert split(root, "1/8", 5).folder == root / "splits" / "1_8-seed5"
    assert split(root, "4", 0, stratified=True).folder == root / "splits" / "4-seed0-stratified"


def test_progress_counts_the_masks_that_are_read(root):
    calls = []
    split(root, "4", stratified=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 40) for i in range(40)]


def test_other_images_do_not_change_the_order_of_the_draw(root):
    before = lines(split(root, "3", name="before"), "labeled")
    for path in (root / "images" / "00.png", root / "masks" / "00.png"):
        path.unlink()
    assert "00" not in before and lines(split(root, "3", name="after"), "labeled") == before


def test_an_amount_of_all_that_have_masks_is_possible(root):
    assert (split(root, "40").labeled, split(root, "1/100").labeled) == (40, 1)


ODD = [
    "#1",
    "#2 b",
    " blank at both ends ",
    "next\u0085line",
    "line\u2028separator",
    "a\ttab",
    os.fsdecode(b"no\xff utf8"),
]


def test_odd_names_stand_in_lists_as_they_are(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in [*ODD, *(f"plain {i}" for i in range(5))]:
            write_mask(tmp_path / folder / f"{name}.png", np.zeros((4, 4), np.uint8), [(0, 0, 0)])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    val = "".join(f"images/plain {i}.png masks/plain {i}.png\n" for i in range(5))
    (tmp_path / "val.txt").write_text("# a comment\n#\n" + val)
    config = DataConfig(source="folder", root=tmp_path)
    make_split(open_source(config), "7", name="all")
    opened = open_source(DataConfig(source="folder", root=tmp_path, split="all"))
    assert sorted(sample.id for sample in opened.labeled) == sorted(ODD) and len(opened.val) == 5
    pairs = "".join(f"images/{name}.png masks/{name}.png\n" for name in ODD if "\t" not in name)  # it divides the two
    (tmp_path / "pairs.txt").write_bytes(os.fsencode(pairs))
    opened = open_source(DataConfig(source="folder", root=tmp_path, labeled=Path("pairs.txt")))
    assert sorted(sample.id for sample in opened.labeled) == sorted(name for name in ODD if "\t" not in name)


def test_a_name_that_no_list_can_hold_is_refused(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("two\nlines", "a", "b"):
            write_mask(tmp_path / folder / f"{name}.png", np.zeros((4, 4), np.uint8), [(0, 0, 0)])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"'two\\nlines': a name with a line's end"):
        make_split(open_source(DataConfig(source="folder", root=tmp_path)), "2")
    assert not (tmp_path / "splits").exists()
