"""`allspark label`: from a run to a list that can be trained on, and what it refuses."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allspark.cli.app import main
from allspark.engine.run import open_run
from tests.cli.conftest import SET


@pytest.fixture(scope="session")
def kept(tiny_folder, tmp_path_factory) -> Path:
    """A finished supervised run that kept three checkpoints, to be read only."""
    out = tmp_path_factory.mktemp("kept") / "run"
    data, method = ["--data", str(tiny_folder)], ["--set", "method.name=supervised", "--set", "train.keep_every=1"]
    assert main(["train", "--recipe", "folder", *data, "--out", str(out), *SET, *method]) == 0
    return out


def succeed(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    return last


def rows_of(folder):
    with (folder / "reliability.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_labels_the_images_without_masks(kept, tiny_folder, tmp_path, capsys):
    out = tmp_path / "pseudo"
    command = ["label", kept, "--out", out, "--reliable", "0.5", "--checkpoint", "last"]
    succeed(*command)
    assert capsys.readouterr().out == (
        f"{out / 'list.txt'}: 3 of 6 images, by stability; masks and reliability in {out}\n"
    )
    rows = rows_of(out)
    assert len(rows) == 6 and all(0 <= float(row["stability"]) <= 1 for row in rows)
    best = sorted(rows, key=lambda row: -float(row["stability"]))[:3]
    listed = [line.split("\t") for line in (out / "list.txt").read_text().splitlines()]
    assert {image for image, _ in listed} == {row["image"] for row in best}
    assert (out / "rest.txt").read_text().splitlines() == [r["image"] for r in rows if r not in best]
    predictor = open_run(kept, "last").predictor()
    for image, mask in listed:
        with Image.open(tiny_folder / image) as picture, Image.open(out / mask) as labels:
            assert np.array_equal(np.asarray(labels), predictor.predict(picture.convert("RGB")).mask)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    succeed(*command)  # nothing is done again
    assert before == {path: path.stat().st_mtime_ns for path in before}

    rest = tmp_path / "rest.txt"
    also = ["--also", out / "list.txt", "--by", "confidence"]
    succeed("label", kept, "--out", rest, "--images", out / "rest.txt", *also, "--tta")
    assert len(rest.read_text().splitlines()) == 6 and len(rows_of(tmp_path / "rest")) == 3
    assert all((tmp_path / line.split("\t")[1]).is_file() for line in rest.read_text().splitlines())


def test_images_from_elsewhere_with_odd_names(run, tiny_folder, tmp_path):
    photos = tmp_path / "Fotos für alle"
    photos.mkdir()
    first = sorted((tiny_folder / "images").iterdir())[0]
    for name in ("ein Bild.jpg", "Öl.png"):
        with Image.open(first) as image:
            image.save(photos / name)
    succeed("label", run, "--out", tmp_path / "out", "--images", photos, "--confidence", "1")
    lines = (tmp_path / "out" / "list.txt").read_text("utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(photos / "ein Bild.jpg"), str(photos / "Öl.png")]
    assert all(row["stability"] == "" and float(row["kept"]) == 0 for row in rows_of(tmp_path / "out"))


def test_refusals_are_one_line(run, kept, tiny_folder, tmp_path, capsys):
    data = Path(shutil.copytree(tiny_folder, tmp_path / "data"))
    here = ["--data", data]
    for place in (data, data / "images" / "pseudo", data / "masks"):
        assert "among the files of the data set" in fails(capsys, "label", run, "--out", place, *here)
    assert sorted(path.name for path in (data / "images").iterdir()) == sorted(
        path.name for path in (tiny_folder / "images").iterdir()
    )
    (tmp_path / "mine.txt").write_text("mine")
    assert "was not written by" in fails(capsys, "label", run, "--out", tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    few = fails(capsys, "label", run, "--out", tmp_path / "a", "--by", "stability")
    assert "stability needs two checkpoints or more, there are none" in few and "train.keep_every" in few
    assert "there are network" in fails(capsys, "label", kept, "--out", tmp_path / "b", "--network", "student")
    assert "is none; take a larger share" in fails(capsys, "label", kept, "--out", tmp_path / "c", "--reliable", "0.1")
    changed = fails(capsys, "label", kept, "--out", tmp_path / "c", "--confidence", "0.5")
    assert "made with confidence None, not 0.5" in changed
    assert "no such list of images" in fails(capsys, "label", run, "--out", tmp_path / "d", "--images", "none.txt")
