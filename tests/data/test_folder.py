"""The folder layout: every rule of its docstring, and what is said when a piece is missing."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from allspark.config import DataConfig
from allspark.data import open_source
from allspark.data.layout import Layout, find_files, read_list
from allspark.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Ten images, six of them with masks, names with spaces and umlauts."""
    root = tmp_path / "meine Daten"
    (root / "images" / "unter ordner").mkdir(parents=True)
    (root / "masks" / "unter ordner").mkdir(parents=True)
    names = [f"bild {i}" for i in range(8)] + ["unter ordner/süß 1", "unter ordner/süß 2"]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6)).save(root / "images" / f"{name}.{'jpg' if i % 2 else 'png'}")
        if i < 5 or i == 8:
            Image.fromarray(np.full((6, 8), i % 3, np.uint8)).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("ground\nsky\ntree\n")
    return root


def ids(samples):
    return [sample.id for sample in samples]


def open_(root, **kwargs):
    return open_source(DataConfig(root=root, **kwargs))


def test_masks_decide_what_is_labelled_and_a_fifth_is_held_out(root):
    source = open_(root)
    assert len(source.labeled) == 5 and len(source.val) == 1
    assert sorted(ids(source.unlabeled)) == ["bild 5", "bild 6", "bild 7", "unter ordner/süß 2"]
    assert all(sample.mask is None for sample in source.unlabeled)
    assert "held out" in source.notes[0]
    assert source.classes == ("ground", "sky", "tree") and len(source.palette) == 3 and not source.rgb_masks
    assert open_(root) == source


def test_lists_of_the_folder_are_followed(root):
    (root / "val.txt").write_text("bild 0\r\nbild 1\r\n")
    (root / "train.txt").write_text("﻿# mine\n\nbild 2\nimages/bild 3.jpg\nbild 6\nbild 1\n", "utf-8")
    source = open_(root)
    assert ids(source.labeled) == ["bild 2", "bild 3"] and ids(source.val) == ["bild 0", "bild 1"]
    assert ids(source.unlabeled) == ["bild 6"]
    assert any("kept out of training" in note for note in source.notes)


def test_configured_lists_win(root):
    (root / "mine.txt").write_text("images/bild 4.png masks/bild 4.png\nbild 0\tmasks/bild 0.png\n")
    (root / "rest.txt").write_text("bild 7\nbild 0\n")
    (root / "val.txt").write_text("bild 1\n")
    source = open_(root, labeled="mine.txt", unlabeled="rest.txt")
    assert ids(source.labeled) == ["bild 4", "bild 0"] and ids(source.unlabeled) == ["bild 7", "bild 0"]
    everything_else = open_(root, labeled="mine.txt")
    assert set(ids(everything_else.unlabeled)) == set(ids(open_(root).unlabeled)) | {
        "bild 2",
        "bild 3",
        "unter ordner/süß 1",
    }


def test_rgb_masks_need_colours_and_then_work(root):
    for path in (root / "masks").rglob("*.png"):
        Image.new("RGB", (8, 6), (0, 200, 0)).save(path)
    with pytest.raises(DataError, match=r"gives no colours.*0 200 0"):
        open_(root)
    (root / "classes.txt").write_text("0\tground\t1 1 1\n1\tsky\t0 200 0\n255\tvoid\t0 0 0\n")
    source = open_(root)
    assert source.rgb_masks and source.palette == ((1, 1, 1), (0, 200, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"classes\.txt: no such file; write one class name a line.*values 0, 1, 2"),
        ("", "0 classes"),
        ("only\n", "1 classes"),
        ("0\ta\n2\tb\n", r"line 2: expected class id 1, got '2'"),
        ("0\ta\t1 2\n1\tb\n", "a colour is three numbers"),
        ("0\ta\t1 2 999\n1\tb\n", "a colour is three numbers"),
        ("\n".join(f"c{i}" for i in range(300)), "300 classes; at most 255"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_what_is_wrong_with_classes_txt_is_said(root, content, words):
    path = root / "classes.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        open_(root)
    assert "\n" not in str(caught.value)


def test_masks_coded_0_255_get_a_hint(root):
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(np.array([[0, 255]], np.uint8)).save(path)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match="divide the masks by 255"):
        open_(root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bild 99", r"list\.txt, line 1: no image .*bild 99"),
        ("unter ordner/sues 1", "did you mean 'unter ordner/süß 1'"),
        ("../../etc/passwd", "leaves the data set's folder"),
        ("/etc/passwd", "leaves the data set's folder"),
        ("bild 1\t/etc/passwd", "leaves the data set's folder"),
        ("", "the list is empty"),
        ("bild 5", "listed as labelled but has no mask"),
    ],
)
def test_a_wrong_list_names_itself_and_the_line(root, line, words):
    (root / "list.txt").write_text(line + "\n", "utf-8")
    with pytest.raises(DataError, match=words):
        open_(root, labeled="list.txt")


def test_a_list_that_is_no_text_is_named(root):
    (root / "list.txt").write_bytes(b"bild 1\nf\xfcr\n")
    with pytest.raises(DataError, match=r"list\.txt: not a text file in UTF-8 \(byte 8\)"):
        open_(root, labeled="list.txt")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"split": "none"}, "make one with `allspark split"),
        ({"labeled": "gone.txt"}, "no such list gone.txt"),
        ({"val": "gone.txt"}, "data.val: no such list"),
    ],
)
def test_lists_that_do_not_exist_are_named(root, kwargs, words):
    with pytest.raises(DataError, match=words):
        open_(root, **kwargs)


def test_no_labels_at_all_says_where_masks_were_looked_for(root):
    for path in (root / "masks").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no labelled image: looked for masks in .*masks"):
        open_(root)
    assert len(open_source(DataConfig(root=root), require_labels=False).unlabeled) == 10


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.root is not set"):
        open_source(DataConfig())
    with pytest.raises(DataError, match="no such folder"):
        open_(tmp_path / "gone")
    with pytest.raises(DataError, match=r"images: no such folder; put images in .*holds nothing"):
        open_(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_(tmp_path)


def test_two_files_of_one_name_are_an_error(root):
    Image.new("RGB", (8, 6)).save(root / "images" / "bild 0.jpg")
    with pytest.raises(DataError, match="the same id 'bild 0'"):
        open_(root)


def test_links_that_form_a_circle_do_not_hang(root):
    (root / "images" / "loop").symlink_to(root / "images")
    assert len(open_(root).unlabeled) == 4


def test_ten_thousand_images_open_without_a_look_at_each(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(10_000):
        (tmp_path / "images" / f"{i:05d}.jpg").touch()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "masks" / "00000.png")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "masks" / "00001.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "train.txt").write_text("".join(f"{i:05d}\n" for i in range(10_000)))
    looks = []
    stat = type(tmp_path).stat
    monkeypatch.setattr(type(tmp_path), "stat", lambda self, **kwargs: looks.append(self) or stat(self, **kwargs))
    source = open_(tmp_path)
    assert len(source.unlabeled) == 9998 and len(looks) < 50


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_whatever_a_list_holds_it_is_read_or_refused_in_one_line(root, text):
    layout = Layout(root, find_files(root / "images"), find_files(root / "masks"), root / "images", root / "masks")
    path = root / "fuzz.txt"
    path.write_text(text, "utf-8", newline="")
    try:
        samples = read_list(path, layout)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert samples and all(sample.image.is_relative_to(root) for sample in samples)
