"""Masks drawn from COCO's instances, and Potsdam's pictures cut into tiles."""

import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from allspark.cli.app import main
from allspark.config.schema import DataConfig
from allspark.data.image import from_colours
from allspark.data.sets import open_source
from allspark.data.sets.coco import CLASSES, draw_instances, prepare_coco
from allspark.data.sets.potsdam import CLASSES as POTSDAM_CLASSES
from allspark.data.sets.potsdam import TEST_AREAS, prepare_potsdam, tile_boxes
from allspark.errors import DataError, UserError
from tests.fakes import coco_annotations, potsdam_pictures


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_masks_of_real_instances_equal_those_that_lie_beside_them(shared, tmp_path):
    data = shared / "data" / "coco-mini"
    (tmp_path / "annotations").symlink_to(data / "annotations")
    made = prepare_coco(tmp_path, workers=2)
    masks = sorted((data / "masks").glob("*.png"))
    assert (made.made, made.kept, made.notes) == (len(masks), 0, ()) and len(masks) == 100
    for path in masks:
        assert np.array_equal(read(tmp_path / "masks" / path.name), read(path)), path.name
    classes = [line.split("\t")[1] for line in (data / "classes.txt").read_text().splitlines()]
    assert tuple(classes[: len(CLASSES)]) == CLASSES


def test_smaller_instances_lie_over_larger_ones_and_crowds_do_not_count():
    square = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
    inner = [5.0, 5.0, 8.0, 5.0, 8.0, 8.0, 5.0, 8.0]
    sliver = [1.0, 1.0, 2.0, 2.0]
    crowd = {"size": [20, 16], "counts": [20 * 14, 20 * 2]}
    instances = [(3, 9.0, False, [inner]), (1, 100.0, False, [square, sliver]), (7, 40.0, True, crowd)]
    expected = Image.new("L", (16, 20))
    for k, box in ((1, (2, 2, 11, 11)), (3, (5, 5, 7, 7)), (255, (14, 0, 15, 19))):
        ImageDraw.Draw(expected).rectangle(box, fill=k)
    assert np.array_equal(draw_instances(20, 16, instances), np.asarray(expected))
    assert not draw_instances(20, 16, [(1, 1.0, False, [sliver])]).any()


def test_what_is_there_is_not_drawn_again(tmp_path, capsys):
    coco_annotations(tmp_path)
    assert main(["prepare", "coco", str(tmp_path), "--workers", "0"]) == 0
    assert "13 masks made, 0 were there already" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    assert read(tmp_path / "masks" / "000000000001.png").max() == 0  # no instance: all background
    for name in ("000000000004.png", "000000000502.png"):
        (tmp_path / "masks" / name).unlink()
    (tmp_path / "masks" / "000000000002.png").write_bytes(b"ready-made")
    assert main(["prepare", "coco", str(tmp_path), "--workers", "2"]) == 0
    assert "2 masks made, 11 were there already" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    assert after == before | {"000000000002.png": b"ready-made"}


def test_an_interrupted_preparation_goes_on_and_leaves_no_half_file(tmp_path, monkeypatch):
    coco_annotations(tmp_path)
    drawn = []

    def stop_at_the_fifth(*arguments):
        drawn.append(arguments)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return np.zeros((64, 80), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr("allspark.data.sets.coco.draw_instances", stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            prepare_coco(tmp_path, workers=1)
    assert len(list((tmp_path / "masks").iterdir())) == 4
    made = prepare_coco(tmp_path, workers=1)
    assert (made.made, made.kept) == (9, 4)


def test_ready_made_masks_may_lie_in_a_folder_for_each_part(tmp_path):
    coco_annotations(tmp_path)
    for part, name in (("train2017", "000000000002"), ("val2017", "000000000501")):
        (tmp_path / "masks" / part).mkdir(parents=True)
        Image.new("L", (80, 64), 80).save(tmp_path / "masks" / part / f"{name}.png")
    source = open_source(DataConfig(source="coco", root=tmp_path))
    assert [sample.id for sample in source.labeled] == ["000000000002"] and len(source.unlabeled) == 9
    assert [sample.id for sample in source.val] == ["000000000501"]


def test_wrong_annotations_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"instances_train2017\.json: no such file"):
        prepare_coco(tmp_path, workers=1)
    coco_annotations(tmp_path)
    with pytest.raises(DataError, match=r"allspark prepare coco"):
        open_source(DataConfig(source="coco", root=tmp_path))
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for text, said in (
        ("{", "not an instances file"),
        ("[]", "not an instances file"),
        (json.dumps(content | {"categories": content["categories"][1:]}), "not the 80 of COCO"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            prepare_coco(tmp_path, workers=1)
    file.unlink()
    (note,) = prepare_coco(tmp_path, workers=1).notes
    assert "instances_val2017.json: no such file" in note
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"allspark\[coco\]"):
        prepare_coco(tmp_path, workers=1)


@pytest.mark.parametrize(("side", "size"), [(6000, 512), (1, 512), (512, 512), (513, 512), (1000, 333)])
def test_tiles_cover_every_pixel_once(side, size):
    covered = np.zeros((side, 100), np.int32)
    sizes = set()
    for top, left, bottom, right in tile_boxes(side, 100, size):
        covered[top:bottom, left:right] += 1
        sizes.add(bottom - top)
    assert (covered == 1).all() and max(sizes) <= size and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("labels", ["all", "noBoundary"])
def test_tiles_of_potsdam_put_together_give_the_pictures(tmp_path, labels, capsys):
    potsdam_pictures(tmp_path)
    command = ["prepare", "potsdam", str(tmp_path), "--size", "80", "--labels", labels, "--workers", "0"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "12 tiles made, 0 were there already" in out and "6_7: no labels in" in out
    assert "pixels have a colour of no class" in out
    folder, end = ("5_Labels_all", "") if labels == "all" else ("5_Labels_all_noBoundary", "_noBoundary")
    colours = read(tmp_path / folder / f"top_potsdam_7_13_label{end}.tif")
    image = read(tmp_path / "2_Ortho_RGB" / "top_potsdam_7_13_RGB.tif")
    expected = from_colours(colours, [colour for _, colour in POTSDAM_CLASSES])
    if labels == "noBoundary":
        assert (expected[:3] == 255).all()
    for path in sorted((tmp_path / "tiles" / "images").glob("7_13_*.png")):
        top, left = map(int, path.stem.split("_")[2:])
        tile, mask = read(path), read(tmp_path / "tiles" / "masks" / path.name)
        assert np.array_equal(tile, image[top : top + 64, left : left + 80])
        assert np.array_equal(mask, expected[top : top + 64, left : left + 80])
    source = open_source(DataConfig(source="potsdam", root=tmp_path))
    assert {len(samples) for samples in (source.labeled, source.unlabeled, source.val)} == {4}
    # Again: nothing to do. A tile that is gone comes back. Other tiles are refused.
    (tmp_path / "tiles" / "images" / "2_10_0000_0000.png").unlink()
    assert main(command) == 0 and "1 tiles made, 11 were there already" in capsys.readouterr().out
    with pytest.raises(DataError, match="remove it to cut others"):
        prepare_potsdam(tmp_path, size=64, workers=1)


def test_potsdam_has_24_areas_to_train_and_14_to_test():
    columns = {2: range(10, 15), 3: range(10, 15), 4: range(10, 16), 5: range(10, 16), 6: range(7, 16), 7: range(7, 14)}
    areas = {f"{row}_{column}" for row, numbers in columns.items() for column in numbers}
    assert len(areas) == 38 and len(areas - TEST_AREAS) == 24 and areas > TEST_AREAS


def test_wrong_pictures_of_potsdam_are_one_line(tmp_path):
    with pytest.raises(DataError, match="2_Ortho_RGB"):
        prepare_potsdam(tmp_path, workers=1)
    with pytest.raises(DataError, match="allspark prepare potsdam"):
        open_source(DataConfig(source="potsdam", root=tmp_path))
    potsdam_pictures(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "5_Labels_all" / "top_potsdam_2_10_label.tif")
    with pytest.raises(DataError, match=r"top_potsdam_2_10_label\.tif: 9x9 pixels, but its image has 160x128"):
        prepare_potsdam(tmp_path, workers=2)
