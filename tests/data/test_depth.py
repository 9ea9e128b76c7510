"""Images of more than 8 bits: one white for all of a set, whatever one of them holds."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from allspark.config.files import apply_overrides, load_config
from allspark.config.schema import DataConfig
from allspark.data.decode import read_sample
from allspark.data.depth import with_white
from allspark.data.image import read_image
from allspark.data.sets import open_source
from allspark.engine.run import open_run
from allspark.engine.train import train
from allspark.inference.files import predict_files
from tests.helpers import Lines


def deep_set(root, highest, kind):
    """Grey pictures whose values rise from 0, each to a part of the highest; three with masks, two without."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rising = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    for i in range(7):
        values = rising * highest * (i + 1) / 7
        suffix = "tif" if kind is np.float32 else "png"
        Image.fromarray(values.astype(kind)).save(root / "images" / f"{i}.{suffix}")
        if i < 5:
            Image.fromarray((rising > 0.5).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    return open_source(DataConfig(source="folder", root=root))


def brightest(source):
    samples = sorted([*source.labeled, *source.unlabeled, *source.val], key=lambda sample: sample.id)
    read = [read_sample(sample, source, want_mask=False, max_pixels=10**6)[0] for sample in samples]
    return [int(np.asarray(image).max()) for image in read]


@pytest.mark.parametrize(
    ("highest", "kind", "white"),
    [
        (200, np.uint16, 255),
        (1000, np.uint16, 1023),
        (4000, np.uint16, 4095),
        (60000, np.uint16, 65535),
        (0.9, np.float32, 1),
        (3.5, np.float32, 255),
        (1e6, np.float32, 1e6),
    ],
)
def test_one_white_is_found_for_all_images(tmp_path, highest, kind, white):
    said = []
    source = with_white(deep_set(tmp_path, highest, kind), 10**6, said.append)
    assert source.white == pytest.approx(white)
    assert said == [f"7 of 7 images have more than 8 bits, values up to {highest:g}: {white:g} is white in all of them "
                    "(data.white)"]  # fmt: skip
    expected = [255 * highest * (i + 1) / 7 / white for i in range(7)]
    assert brightest(source) == pytest.approx(expected, abs=1.5)


def write_png_of_16_bits(path, pixels):
    """(H, W, 3), which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize(("highest", "dark"), [(4095, True), (16383, True), (60000, False)])
def test_colours_that_look_black_are_said(tmp_path, highest, dark):
    deep_set(tmp_path, 60000, np.uint16)
    for path in (tmp_path / "images").iterdir():
        write_png_of_16_bits(path, np.full((64, 64, 3), highest))
    said = []
    with_white(open_source(DataConfig(source="folder", root=tmp_path)), 10**6, said.append)
    assert [line.startswith("7 of 7 images have colours of 16 bits") for line in said] == [True] * dark


def test_a_set_of_8_bits_needs_none(tiny_folder):
    source = open_source(DataConfig(source="folder", root=tiny_folder))
    assert with_white(source, 10**8, pytest.fail) is source


def test_what_the_user_says_goes_before_what_is_found(tmp_path):
    deep_set(tmp_path, 4000, np.uint16)
    source = open_source(DataConfig(source="folder", root=tmp_path, white=8000))
    assert with_white(source, 10**8, pytest.fail).white == 8000
    assert brightest(source)[-1] == pytest.approx(255 * 4000 / 8000, abs=1)


def test_a_run_keeps_its_white_and_predicts_with_it(tmp_path, tiny_config, monkeypatch):
    """Also of a picture that alone would be taken for one of another range."""
    deep_set(tmp_path / "data", 4000, np.uint16)
    config = apply_overrides(tiny_config, [f"data.root={tmp_path / 'data'}", "train.epochs=1"])
    said = Lines()
    train(config, tmp_path / "run", sinks=[said])
    assert any("4095 is white" in line for line in said.lines)
    assert load_config(tmp_path / "run" / "config.yaml").data.white == 4095
    opened = open_run(tmp_path / "run")
    Image.fromarray(np.full((64, 64), 250, np.uint16)).save(tmp_path / "dark.png")
    seen = []
    predictor = opened.predictor()
    plain = predictor.predict
    monkeypatch.setattr(predictor, "predict", lambda image, **how: seen.append(image) or plain(image, **how))
    white = opened.config.data.white
    predict_files(predictor, [str(tmp_path / "dark.png")], tmp_path / "out", opened.palette, white=white)
    assert np.asarray(seen[0]).max() == round(250 / 4095 * 255)
    assert np.asarray(read_image(tmp_path / "dark.png")).max() == 250  # by itself
