"""Image and mask files of all kinds; whatever is wrong with one is a line that names it."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from allspark.batch import IMAGENET
from allspark.data.image import is_coloured, mode_of, normalize, overlay, read_image, read_mask, write_mask
from allspark.data.sets.classes import is_rgb
from allspark.errors import DataError

PALETTE = [(0, 0, 0), (128, 64, 0), (1, 2, 3)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Bilder für später"
    folder.mkdir()
    return folder


def noise(height=9, width=14, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(folder, image, name, **kwargs):
    image.save(folder / name, **kwargs)
    return folder / name


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp"])
def test_rgb_comes_back(folder, suffix):
    path = saved(folder, Image.fromarray(noise()), f"ä b.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(read_image(path)), noise())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(folder, orientation):
    upright = Image.fromarray(noise())
    # How a camera held that way would have stored the upright picture.
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    path = saved(folder, stored, "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), noise())


def test_grey_levels_are_kept_and_16_bits_lose_the_low_byte(folder):
    grey = noise(channels=1)
    assert np.array_equal(np.asarray(read_image(saved(folder, Image.fromarray(grey), "g.png")))[..., 1], grey)
    deep = grey.astype(np.uint16) * 256 + 7
    for name in ("d.png", "d.tif"):
        assert np.array_equal(np.asarray(read_image(saved(folder, Image.fromarray(deep), name)))[..., 2], grey)
    unit = Image.fromarray((grey / 255).astype(np.float32))
    assert np.abs(np.asarray(read_image(saved(folder, unit, "f.tif")))[..., 0].astype(int) - grey).max() <= 1


def test_transparent_pixels_are_white(folder):
    pixels = np.dstack([noise(), np.zeros((9, 14), np.uint8)])
    pixels[0, 0, 3] = 255
    for name, image in {
        "rgba.png": Image.fromarray(pixels),
        "la.png": Image.fromarray(pixels).convert("LA"),
    }.items():
        read = np.asarray(read_image(saved(folder, image, name)))
        assert (read[1:] == 255).all() and not (read[0, 0] == 255).all()
    palette = Image.fromarray(noise(channels=1) % 3)
    palette = palette.convert("P")
    palette.putpalette([9, 9, 9, 20, 20, 20, 30, 30, 30])
    read = np.asarray(read_image(saved(folder, palette, "p.png", transparency=1)))
    index = np.asarray(palette)
    assert (read[index == 1] == 255).all() and (read[index == 0] == 9).all()


def test_cmyk_looks_as_it_should(folder):
    red = Image.new("RGB", (16, 16), (230, 20, 10)).convert("CMYK")
    read = np.asarray(read_image(saved(folder, red, "c.jpg", quality=95)))
    assert np.abs(read.reshape(-1, 3).mean(0) - (230, 20, 10)).max() < 12


def test_one_pixel(folder):
    assert read_image(saved(folder, Image.fromarray(noise(1, 1)), "1.png")).size == (1, 1)


def png(width, height):
    """A PNG whose header claims a size that its data does not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg():
    out = io.BytesIO()
    Image.fromarray(noise(200, 300)).save(out, "jpeg", quality=95)
    return out.getvalue()


FAULTS = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"not a picture", "not an image"),
    "head": (lambda: b"\0\0" + jpeg()[2:], "not an image"),
    "first bytes only": (lambda: jpeg()[:20], "not an image|damaged"),
    "middle": (lambda: jpeg()[: len(jpeg()) // 2], "damaged"),
    "last byte missing": (lambda: jpeg()[:-1], "damaged"),
    "bomb": (lambda: png(40_000, 40_000), "max_pixels|too many pixels"),
    "no data": (lambda: png(400, 400), "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_bad_file_is_one_line_that_names_it(folder, fault, read):
    content, words = FAULTS[fault]
    path = folder / "schlecht.png"
    path.write_bytes(content())
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(folder):
    with pytest.raises(DataError, match="no such file"):
        read_image(folder / "none.png")
    with pytest.raises(DataError, match="a folder"):
        read_image(folder)
    with pytest.raises(DataError, match="max_pixels = 100"):
        read_image(saved(folder, Image.fromarray(noise(11, 10)), "x.png"), max_pixels=100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission_is_named(folder):
    path = saved(folder, Image.fromarray(noise()), "x.png")
    path.chmod(0)
    with pytest.raises(DataError, match="permission"):
        read_image(path)


def test_reading_in_threads_leaves_the_warning_filters_alone(folder):
    paths = [saved(folder, Image.fromarray(noise(seed=i)), f"{i}.png") for i in range(20)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, paths * 10))
    assert warnings.filters == before


def test_masks_of_every_kind_give_the_same_ids(folder):
    ids = noise(channels=1) % 3
    colours = np.array(PALETTE, np.uint8)[ids]
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette([200, 1, 1, 3, 3, 3, 7, 7, 7])
    for name, image in {
        "l.png": Image.fromarray(ids),
        "p.png": palette,
        "i.png": Image.fromarray(ids.astype("uint16")),
    }.items():
        assert np.array_equal(read_mask(saved(folder, image, name), num_classes=3), ids)
    for image, name in ((Image.fromarray(colours), "rgb.png"), (Image.fromarray(colours).convert("RGBA"), "rgba.png")):
        assert np.array_equal(read_mask(saved(folder, image, name), palette=PALETTE), ids)
    binary = Image.fromarray(ids > 0).convert("1")
    assert np.array_equal(read_mask(saved(folder, binary, "1.png")), ids > 0)


def test_colours_outside_the_palette_are_ignored(folder):
    path = saved(folder, Image.new("RGB", (2, 2), (9, 9, 8)), "m.png")
    assert (read_mask(path, palette=PALETTE) == 255).all()
    with pytest.raises(DataError, match=r"classes\.txt"):
        read_mask(path)


def test_values_that_are_no_class_are_named(folder):
    mask = np.array([[0, 1, 2, 7, 255]], np.uint8)
    path = saved(folder, Image.fromarray(mask), "m.png")
    with pytest.raises(DataError, match=r"m\.png: mask values 7, but there are classes 0 to 2"):
        read_mask(path, num_classes=3)
    assert np.array_equal(read_mask(path, num_classes=8), mask)
    with pytest.raises(DataError, match="up to 300"):
        read_mask(saved(folder, Image.fromarray(np.full((2, 2), 300, np.uint16)), "big.png"))


def test_normalize_is_the_formula():
    image = noise(5, 7)
    expected = ((image / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)).transpose(2, 0, 1)
    result = normalize(image)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_written_masks_come_back_with_their_colours(folder):
    mask = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
    write_mask(folder / "m.png", mask, PALETTE)
    assert np.array_equal(read_mask(folder / "m.png"), mask)
    with Image.open(folder / "m.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((1, 0)) == PALETTE[1]
        assert image.convert("RGB").getpixel((0, 1)) == (224, 224, 192)


def test_overlay_mixes_colours_and_leaves_ignored_pixels():
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    mixed = np.asarray(overlay(image, np.array([[1, 255]], np.uint8), PALETTE, alpha=0.5))
    assert mixed[0, 0].tolist() == [114, 82, 50] and mixed[0, 1].tolist() == [100, 100, 100]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_is_applied_in_every_format_that_holds_one(folder, suffix, orientation):
    halves = np.zeros((32, 48, 3), np.uint8)
    halves[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    path = saved(folder, Image.fromarray(halves).transpose(back), f"x.{suffix}", exif=exif)
    read = np.asarray(read_image(path)).astype(int)
    assert read.shape == halves.shape and np.abs(read - halves).mean() < 5


def test_a_mask_is_turned_as_its_image_is(folder):
    ids = noise(channels=1) % 3
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(folder, Image.fromarray(ids).transpose(Image.Transpose.ROTATE_90), "m.png", exif=exif)
    assert np.array_equal(read_mask(path, num_classes=3), ids)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_one_transparent_colour_of_a_png_is_white(folder, mode):
    pixels = np.full((4, 5), 60, np.uint8)
    pixels[0] = 7
    image = Image.fromarray(pixels).convert(mode)
    path = saved(folder, image, "t.png", transparency=(7, 7, 7) if mode == "RGB" else 7)
    read = np.asarray(read_image(path))
    assert (read[0] == 255).all() and (read[1:] == 60).all()


def test_32_bit_grey_is_brought_to_8_bits(folder):
    deep = noise(channels=1).astype(np.int32) * 256 + 200
    assert np.array_equal(np.asarray(read_image(saved(folder, Image.fromarray(deep), "i.tif")))[..., 0], deep // 256)


def test_floating_point_values_that_are_no_numbers_do_no_harm(folder):
    values = np.array([[np.nan, 0.0, 1.0]], np.float32)
    assert np.asarray(read_image(saved(folder, Image.fromarray(values), "f.tif")))[0, :, 0].tolist() == [0, 0, 255]


def test_the_limit_of_pixels_holds_for_masks_and_lets_equal_sizes_pass(folder):
    path = saved(folder, Image.fromarray(noise(10, 10, 1)), "m.png")
    assert read_mask(path, max_pixels=100).shape == (10, 10)
    with pytest.raises(DataError, match=r"10 x 10 pixels are more than data\.max_pixels = 99"):
        read_mask(path, max_pixels=99)


def test_a_mask_below_zero_is_refused_not_wrapped(folder):
    path = saved(folder, Image.fromarray(np.array([[-1, 0, 2]], np.int32)), "m.tif")
    with pytest.raises(DataError, match=r"m\.tif: mask values from -1"):
        read_mask(path, num_classes=3)


def test_a_mask_of_a_strange_mode_is_named(folder):
    path = saved(folder, Image.fromarray(noise(channels=1)).convert("LA"), "m.png")
    with pytest.raises(DataError, match=r"m\.png: a mask of mode LA"):
        read_mask(path)


def test_of_many_wrong_values_five_are_shown(folder):
    path = saved(folder, Image.fromarray(np.arange(12, dtype=np.uint8)[None]), "m.png")
    with pytest.raises(DataError, match="mask values 2, 3, 4, 5, 6 and 5 more"):
        read_mask(path, num_classes=2)


def test_another_ignore_value_is_no_class_and_no_error(folder):
    path = saved(folder, Image.fromarray(np.array([[0, 1, 99]], np.uint8)), "m.png")
    assert read_mask(path, num_classes=2, ignore=99).tolist() == [[0, 1, 99]]
    coloured = saved(folder, Image.new("RGB", (1, 1), (9, 9, 9)), "c.png")
    assert read_mask(coloured, palette=PALETTE, num_classes=3, ignore=99).tolist() == [[99]]


def test_of_equal_colours_the_first_class_counts(folder):
    path = saved(folder, Image.new("RGB", (1, 1), (5, 5, 5)), "m.png")
    assert read_mask(path, palette=[(0, 0, 0), (5, 5, 5), (5, 5, 5)]).tolist() == [[1]]


def test_a_mask_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    path = folder / "m.png"
    write_mask(path, np.zeros((3, 4), np.uint8), PALETTE)
    before = path.read_bytes()

    def half(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        write_mask(path, np.ones((3, 4), np.uint8), PALETTE)
    assert path.read_bytes() == before and [p.name for p in folder.iterdir()] == ["m.png"]


def test_overlay_at_its_two_ends_is_image_and_colours():
    image = Image.fromarray(noise(3, 4))
    mask = noise(3, 4, 1) % 3
    assert np.array_equal(np.asarray(overlay(image, mask, PALETTE, alpha=0)), noise(3, 4))
    assert np.array_equal(np.asarray(overlay(image, mask, PALETTE, alpha=1)), np.array(PALETTE, np.uint8)[mask])


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_tiff_of_four_bands_is_refused_not_guessed(folder, extra):
    """Whatever its header calls the fourth: programs write infrared as transparency."""
    pixels = np.full((4, 4, 4), 100, np.uint8)
    Image.fromarray(pixels, "RGBA").save(folder / "four.tif", tiffinfo={338: (extra,)})
    with pytest.raises(DataError, match=r"four\.tif: four bands, and nothing says .*; save three"):
        read_image(folder / "four.tif")


def test_a_grey_mask_saved_as_rgb_holds_ids(folder):
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(np.stack([ids] * 3, -1)).save(folder / "grey.png")
    assert np.array_equal(read_mask(folder / "grey.png", num_classes=24), ids)
    Image.fromarray(np.stack([ids, ids, ids + 1], -1)).save(folder / "coloured.png")
    with pytest.raises(DataError, match="an RGB mask, but no colours are known"):
        read_mask(folder / "coloured.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_image_and_nobody_waits_for_it(folder):
    os.mkfifo(folder / "x.png")
    for read in (read_image, read_mask, mode_of, is_coloured, is_rgb):
        if read in (read_image, read_mask):
            with pytest.raises(DataError, match=r"x\.png: a pipe or a device, not an image file"):
                read(folder / "x.png")
        else:
            assert not read(folder / "x.png")


def test_the_limit_of_pixels_may_lie_above_pillows_own(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (30, 20)).save(folder / "large.png")
    assert read_image(folder / "large.png", max_pixels=600).size == (30, 20)
    with pytest.raises(DataError, match="30 x 20 pixels are more than"):
        read_image(folder / "large.png", max_pixels=599)
    assert Image.MAX_IMAGE_PIXELS == 100
