"""The folder layout: every rule of its docstring, and what is said when a piece is missing."""

import os
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.decode import read_sample
from allspark.data.sets import open_source
from allspark.data.sets.lists import Layout, find_files, read_list
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
        ("0\ta\t1 ² 3\n1\tb\t1 1 1\n", "a colour is three numbers"),
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
        ("bild 5", r"listed as labelled but has no mask .*masks/bild 5\.png"),
        ("bild 5\tmasks/other.png", r"'bild 5' is listed as labelled but has no mask .*masks/other\.png"),
        ("bild 5\t" + "m" * 400, "'bild 5' is listed as labelled but has no mask"),
        ("bild 1\tmasks/../../x.png", "leaves the data set's folder"),
        ("images/bild_9.png masks/bild_9.png", r"no image .*images/bild_9\.png(?!.* masks/)"),
        ("# a comment\n\n", "the list is empty"),
    ],
)
def test_a_wrong_list_names_itself_and_the_line(root, line, words):
    (root / "list.txt").write_text(line + "\n", "utf-8")
    with pytest.raises(DataError, match=words):
        open_(root, labeled="list.txt")


def test_a_list_that_is_no_text_is_named(root):
    (root / "list.txt").write_bytes(b"bild 1\nf\xfcr\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: not text in UTF-8 \(character 2\)"):
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

    def counted(function):
        return lambda *args, **kwargs: looks.append(args) or function(*args, **kwargs)

    for name in ("stat", "lstat", "open"):  # what pathlib and os.path call
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(type(tmp_path), "stat", counted(type(tmp_path).stat))
    source = open_(tmp_path)
    assert len(source.unlabeled) == 9998 and 0 < len(looks) < 200


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(codec="utf-8"), max_size=60)
    # Pieces of real lines, put together at random.
    | st.lists(
        st.sampled_from(
            (
                *(
                    "bild 0",
                    "bild 5",
                    "bild",
                    "unter ordner/süß 1",
                    "images/",
                    "masks/",
                    ".png",
                    ".jpg",
                    ".",
                    "..",
                    "/",
                ),
                *(" ", "\t", "\n", "\r\n", "#", "\ufeff", "\0", "~", "\\", "x" * 300),
            )
        ),
        max_size=12,
    ).map("".join)
)
@example("bild 1 " + "x" * 300)
def test_whatever_a_list_holds_it_is_read_or_refused_in_one_line(root, text):
    layout = Layout(root, find_files(root / "images"), find_files(root / "masks"), root / "images", root / "masks")
    path = root / "fuzz.txt"
    path.write_text(text, "utf-8", newline="")
    try:
        samples = read_list(path, layout)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert samples or layout.faults
        assert all(sample.image.is_relative_to(root) for sample in samples)
        assert all(str(path) in fault and "\n" not in fault for fault in layout.faults)


def test_a_configured_validation_list_never_trains(root):
    (root / "mine.txt").write_text("bild 0\nbild 1\n")
    source = open_(root, val="mine.txt")
    assert ids(source.val) == ["bild 0", "bild 1"]
    assert sorted(ids(source.labeled)) == ["bild 2", "bild 3", "bild 4", "unter ordner/süß 1"]
    assert sorted(ids(source.unlabeled)) == ["bild 5", "bild 6", "bild 7", "unter ordner/süß 2"]
    assert source.notes == ("2 validation images are kept out of training",)


def test_what_is_held_out_stays_so_whatever_a_labelled_list_says(root):
    held_out = ids(open_(root).val)
    (root / "all.txt").write_text("".join(f"bild {i}\n" for i in range(5)) + "unter ordner/süß 1\n", "utf-8")
    source = open_(root, labeled="all.txt")
    assert ids(source.val) == held_out and len(source.labeled) == 5
    assert not {*held_out} & {*ids(source.labeled), *ids(source.unlabeled)}


def test_a_configured_unlabelled_list_is_freed_of_validation_images(root):
    (root / "val.txt").write_text("bild 1\n")
    (root / "rest.txt").write_text("bild 1\nbild 6\n")
    source = open_(root, unlabeled="rest.txt")
    assert ids(source.unlabeled) == ["bild 6"]
    assert "1 validation image is kept out of training" in source.notes


@pytest.mark.parametrize(
    "line",
    [
        "unter ordner/süß 1",
        "images/unter ordner/süß 1.png",
        "./images/unter ordner/süß 1.png",
        "  unter ordner/süß 1  ",
        "images/unter ordner/süß 1.png masks/unter ordner/süß 1.png",
        "images/unter ordner/süß 1.png\tmasks/unter ordner/süß 1.png",
        "unter ordner/süß 1\tmasks/unter ordner/süß 1.png",
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r\n\r\n# more\r\n"])
def test_every_way_to_write_a_line_means_the_same_image(root, line, end):
    (root / "list.txt").write_bytes((line + end).encode())
    (sample,) = open_(root, labeled="list.txt").labeled
    name = "unter ordner/süß 1"
    assert (sample.id, sample.image, sample.mask) == (
        name,
        root / "images" / f"{name}.png",
        root / "masks" / f"{name}.png",
    )


def test_a_listed_mask_goes_before_the_one_of_that_name(root):
    (root / "other").mkdir()
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(root / "other" / "m.png")
    (root / "list.txt").write_text("images/bild 4.png other/m.png\n")
    assert open_(root, labeled="list.txt").labeled[0].mask == root / "other" / "m.png"


def test_a_line_that_stands_twice_counts_once(root):
    (root / "val.txt").write_text("bild 0\n")
    (root / "list.txt").write_text("bild 3\nbild 2\nimages/bild 3.jpg\n")
    assert ids(open_(root, labeled="list.txt").labeled) == ["bild 3", "bild 2"]


def test_an_unknown_split_names_the_known_ones(root):
    for name in ("1_8-seed0", "mini/half"):
        (root / "splits" / name).mkdir(parents=True)
        (root / "splits" / name / "labeled.txt").write_text("bild 1\n")
    with pytest.raises(DataError, match=r"no file .*nope/labeled\.txt; there are 1_8-seed0, mini/half"):
        open_(root, split="nope")


def test_images_are_found_by_suffix_in_any_case_and_hidden_files_are_not(root):
    for name in ("gross.PNG", "b.TiFF", "c.webp", "d.bmp", ".hidden.png", "notes.txt", "clip.gif"):
        (root / "images" / name).touch()
    found = find_files(root / "images")
    assert {"gross", "b", "c", "d"} <= set(found) and not {".hidden", "notes", "clip"} & set(found)
    assert list(found) == sorted(found)


def test_a_lone_labelled_image_is_not_held_out(root):
    for path in (root / "masks").rglob("*.png"):
        if path.stem != "bild 0":
            path.unlink()
    source = open_(root)
    assert ids(source.labeled) == ["bild 0"] and source.val == () and source.notes == ()


def test_a_classes_txt_that_is_a_folder_is_named(root):
    (root / "classes.txt").unlink()
    (root / "classes.txt").mkdir()
    with pytest.raises(DataError, match=r"classes\.txt: no such file"):
        open_(root)


def test_colours_of_all_or_of_none(root):
    (root / "classes.txt").write_bytes("\ufeff# id name colour\r\n0\tsüßes Gras\t1, 2, 3\r\n1\tsky\t4 5 6\r\n".encode())
    source = open_(root)
    assert source.classes == ("süßes Gras", "sky") and source.palette == ((1, 2, 3), (4, 5, 6))
    (root / "classes.txt").write_text("0\tgrass\t1 2 3\n1\tsky\n")
    assert open_(root).palette == ((0, 0, 0), (128, 0, 0))


@pytest.mark.parametrize(
    "lines",
    [
        *("0,grass\n1,sky\n", "0 grass\n1 sky\n", "0: grass\n1: sky\n", "1 grass\n2 sky\n", "1,grass\n2,sky\n4,tree"),
        "0 grass\nsky\n2 tree\n",
    ],
)
def test_numbers_before_names_without_tabs_are_refused(root, lines):
    (root / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match=r"begin with a number.*; write the names alone"):
        open_(root)
    (root / "classes.txt").write_text("3D model\n2 wheels\n")  # names may begin with one
    assert open_(root).classes == ("3D model", "2 wheels")


def test_rgb_masks_are_read_wherever_they_stand(root):
    (root / "classes.txt").write_text("0\tgrass\t1 2 3\n1\tsky\t4 5 6\n")
    source = open_(root)
    last = source.labeled[-1]
    Image.new("RGB", (8, 6), (4, 5, 6)).save(last.mask)
    _, mask = read_sample(last, open_(root), want_mask=True, max_pixels=100)
    assert (mask == 1).all()


def test_images_of_val_txt_do_not_train_where_another_list_is_validated_on(root):
    (root / "val.txt").write_text("bild 0\nbild 1\n")
    (root / "mine.txt").write_text("bild 1\n")
    source = open_(root, val="mine.txt")
    assert ids(source.val) == ["bild 1"]
    assert "bild 0" not in ids((*source.labeled, *source.unlabeled))


def test_an_image_of_both_lists_is_kept_out_of_training(root):
    (root / "val.txt").write_text("bild 0\n")
    (root / "train.txt").write_text("bild 0\nbild 1\nbild 2\n")
    source = open_(root)
    assert "bild 0" not in ids((*source.labeled, *source.unlabeled)) and ids(source.val) == ["bild 0"]
    assert "1 of" in source.notes[0] and "train.txt too" in source.notes[0]


def test_a_labelled_list_of_held_out_images_is_named(root):
    held = open_(root).val
    (root / "list.txt").write_text("".join(f"{sample.id}\n" for sample in held))
    with pytest.raises(DataError, match=r"labelled images are held out for validation.*val\.txt; write one"):
        open_(root, labeled="list.txt")


def test_a_fault_of_the_layout_stops_all_but_who_asks_for_it(root):
    (root / "classes.txt").unlink()
    config = DataConfig(root=root)
    with pytest.raises(DataError, match=r"classes\.txt: no such file"):
        open_source(config, require_labels=False)
    source = open_source(config, require_labels=False, tolerate=True)
    assert len(source.faults) == 1 and source.labeled


@pytest.mark.parametrize("header", ["id,name", "Name", "classes", "id\tname\tcolour", "label;r;g;b"])
def test_a_header_is_no_class(root, header):
    (root / "classes.txt").write_text(f"{header}\ngrass\nsky\n")
    with pytest.raises(DataError, match="looks like a header, not like a class; remove that line"):
        open_(root)


def test_a_line_without_an_id_among_others_is_refused(root):
    (root / "classes.txt").write_text("0\tgrass\nsky\n2\ttree\n")
    with pytest.raises(DataError, match="'sky' has no id and no tab, but other lines have them"):
        open_(root)


def divided(root, parts):
    for part, (labelled, others) in parts.items():
        for folder in ("images", "masks"):
            (root / folder / part).mkdir(parents=True)
        for i in range(labelled + others):
            Image.new("RGB", (8, 6)).save(root / "images" / part / f"{i}.png")
            if i < labelled:
                Image.fromarray(np.full((6, 8), i % 2, np.uint8)).save(root / "masks" / part / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\n")
    return open_(root)


def test_folders_of_training_and_validation_images_are_taken_as_they_are(tmp_path):
    source = divided(tmp_path, {"train": (3, 2), "val": (4, 0), "test": (2, 0)})
    assert ids(source.labeled) == ["train/0", "train/1", "train/2"] and ids(source.unlabeled) == ["train/3", "train/4"]
    assert ids(source.val) == [f"val/{i}" for i in range(4)]
    (note,) = source.notes
    assert note.endswith("divide the images: 5 train, 4 val, 2 test; test images are not used")


def test_a_list_goes_before_folders(tmp_path):
    divided(tmp_path, {"train": (3, 2), "val": (4, 0)})
    (tmp_path / "val.txt").write_text("train/0\n")
    source = open_(tmp_path)
    assert ids(source.val) == ["train/0"] and ids(source.labeled) == ["train/1", "train/2"]


def test_without_a_folder_of_validation_images_some_are_held_out(tmp_path):
    source = divided(tmp_path, {"train": (5, 2), "test": (3, 0)})
    assert len(source.labeled) == 4 and len(source.val) == 1 and len(source.unlabeled) == 2
    assert "7 train, 3 test" in source.notes[0] and "1 of 5 labelled images are held out" in source.notes[1]


@pytest.mark.parametrize("folder", ["labels", "annotations", "gt"])
def test_a_folder_of_masks_by_another_name_is_pointed_at(root, folder):
    (root / "masks").rename(root / folder)
    with pytest.raises(DataError, match=rf"no mask there, but .*{folder} is there; rename it: mv {folder} masks"):
        open_(root)


@pytest.mark.parametrize("where", ["images", "masks"])
def test_masks_with_an_ending_are_renamed_by_what_the_message_says(root, where):
    for path in list((root / "masks").glob("*.png")):
        path.rename(root / where / f"{path.stem}_mask.png")
    shutil.rmtree(root / "masks" / "unter ordner")
    with pytest.raises(DataError, match=r"masks are named NAME_mask; .*mkdir -p masks; .* done") as error:
        open_(root)
    command = str(error.value).split("images: ", 1)[1].split("; done")[0] + "; done"
    subprocess.run(["bash", "-c", command], cwd=root, check=True)
    assert len(open_(root).labeled) == 4  # of five, one is held out


def test_umlauts_in_one_and_in_two_characters_are_the_same_name(tmp_path):
    """macOS writes the latter."""
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        (tmp_path / folder).mkdir()
        for i in range(5):
            name = unicodedata.normalize(form, f"Straße über {i}")
            Image.new("L", (4, 4)).convert("RGB" if folder == "images" else "L").save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text(
        unicodedata.normalize("NFD", "Straße über 0\nimages/Straße über 1.png\n"), "utf-8"
    )
    source = open_(tmp_path)
    assert len(source.labeled) == 3 and ids(source.val) == ["Straße über 0", "Straße über 1"]


def test_a_file_in_place_of_a_folder_is_to_be_unpacked(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip: a file; unpack it and name the folder"):
        open_(tmp_path / "data.zip")
