import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allspark.config.schema import EvalConfig
from allspark.data.source import default_palette
from allspark.errors import DataError
from allspark.inference.files import Input, expand_inputs, output_names, predict_files, unread_inputs
from allspark.inference.predictor import Predictor
from tests.helpers import LogitsOf

PALETTE = default_palette(2)


class Brightness(LogitsOf):
    """Class 1 where a pixel is bright."""

    def forward(self, image):
        bright = image.mean(1, keepdim=True) * 10
        return bright.new_tensor([-1.0, 1.0])[:, None, None] * bright


@pytest.fixture(params=["whole", "window"])
def predictor(request):
    return Predictor(Brightness(), EvalConfig(mode=request.param, window=(8, 8)))


@pytest.fixture
def whole():
    return Predictor(Brightness(), EvalConfig())


def halves(height=10, width=16):
    """Left half dark, right half bright."""
    pixels = np.full((height, width), 10, np.uint8)
    pixels[:, width // 2 :] = 245
    return pixels


def picture(path, height=10, width=16, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(halves(height, width)).convert(mode).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- which images are meant


def test_files_folders_and_globs_give_each_image_once(tmp_path, monkeypatch):
    for name in ("b.jpg", "A.PNG", "sub/deep/c.tif", "sub/x.webp", "notes.txt", ".hidden.png", ".cache/d.png"):
        picture(tmp_path / "in" / name, mode="L") if name != "notes.txt" else (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(*paths):
        return [(item.image.as_posix(), item.relative.as_posix()) for item in expand_inputs(paths)]

    everything = [("in/" + name, name) for name in ("A.PNG", "b.jpg", "sub/deep/c.tif", "sub/x.webp")]
    assert names("in") == everything
    assert names(Path("in"), "in/b.jpg", tmp_path / "in") == everything
    assert names("in/*") == everything[:2]
    assert names("in/**/*.*") == everything
    assert names("in/s*/x.webp") == [("in/sub/x.webp", "sub/x.webp")]
    assert names("in/b.jpg", "in")[:2] == [("in/b.jpg", "b.jpg"), ("in/A.PNG", "A.PNG")]
    monkeypatch.chdir(tmp_path / "in")
    assert names("*.jpg") == [("b.jpg", "b.jpg")]


def test_a_named_file_may_end_as_it_likes_and_look_like_a_glob(tmp_path):
    odd = [picture(tmp_path / "scan.jpg").rename(tmp_path / "scan.dat"), picture(tmp_path / "a[1].png")]
    assert [item.image for item in expand_inputs(odd)] == odd


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.jpg", "gone.jpg: no such file or folder"),
        ("empty", "empty: the folder holds no image: looked for files that end in .bmp .jpeg"),
        ("empty/*.png", r"empty/\*.png: no image matches the glob"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "text.txt").touch()
    with pytest.raises(DataError, match=words):
        expand_inputs([picture(tmp_path / "a.png"), tmp_path / name])


def test_no_input_at_all_is_an_error():
    with pytest.raises(DataError, match="give image files, folders or globs"):
        expand_inputs([])


# ---- names of the results


def stems(*paths):
    inputs = [Input(Path(path), Path(path.split(":")[-1])) for path in paths]
    return [name.as_posix() for name in output_names(inputs)]


def test_names_keep_sub_folders_and_lose_the_suffix():
    assert stems("in/:sub/a.jpg", "in/:a.jpg", "in/:b.tar.jpg", "in/:raw") == ["sub/a", "a", "b.tar", "raw"]


def test_clashing_names_keep_their_suffix_whatever_the_order():
    assert stems("a.jpg", "a.png", "b.jpg") == ["a.jpg", "a.png", "b"]
    assert stems("b.jpg", "a.png", "a.jpg") == ["b", "a.png", "a.jpg"]
    assert stems("A.jpg", "a.png") == ["A.jpg", "a.png"]  # one file where case does not count
    assert stems("gr\u00fcn.jpg", "gru\u0308n.png") == ["gr\u00fcn.jpg", "gru\u0308n.png"]


def test_equal_names_from_several_folders_take_the_folder_then_the_position():
    def names(*images):
        inputs = [Input(Path("/data") / image, Path(Path(image).name)) for image in images]
        return [name.as_posix() for name in output_names(inputs)]

    assert names("x/a.jpg", "y/a.jpg") == ["x_a.jpg", "y_a.jpg"]
    assert names("p/x/a.jpg", "q/x/a.jpg") == ["x_a.jpg_1", "x_a.jpg_2"]


# ---- masks


def test_masks_are_palette_pictures_of_the_own_size(tmp_path, predictor):
    sizes = {"a.png": (10, 16), "sub/b.png": (31, 22), "c.png": (1, 2)}
    for name, size in sizes.items():
        picture(tmp_path / "in" / name, *size)
    seen = []
    written = predict_files(
        predictor, [tmp_path / "in"], tmp_path / "out", PALETTE, progress=lambda *count: seen.append(count)
    )
    assert files(tmp_path / "out") == sorted(sizes)
    assert written == [tmp_path / "out" / name for name in ("a.png", "c.png", "sub/b.png")]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name, size in sizes.items():
        with Image.open(tmp_path / "out" / name) as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:6] == [value for colour in PALETTE for value in colour]
            np.testing.assert_array_equal(np.asarray(mask), halves(*size) > 127)


def wide_depth(path):
    Image.fromarray((halves() > 127).astype(np.uint16) * 65535).save(path)


def transparent(path):
    picture(path, mode="RGBA")


def palette_picture(path):
    Image.fromarray(halves()).convert("RGB").convert("P").save(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("grey.png", lambda path: picture(path, mode="L")),
        ("black_white.png", lambda path: picture(path, mode="1")),
        ("grey_alpha.png", lambda path: picture(path, mode="LA")),
        ("rgba.png", transparent),
        ("palette.png", palette_picture),
        ("wide.png", wide_depth),
        ("wide.tif", wide_depth),
        ("cmyk.jpg", lambda path: picture(path, mode="CMYK")),
        ("picture.webp", picture),
        ("picture.bmp", picture),
        ("Überführung größer.png", picture),
    ],
)
def test_kinds_of_images(tmp_path, whole, name, save):
    save(tmp_path / name)
    (mask,) = predict_files(whole, [tmp_path / name], tmp_path / "out", PALETTE)
    assert mask == tmp_path / "out" / (Path(name).stem + ".png")
    np.testing.assert_array_equal(read(mask), halves() > 127)


def test_a_turned_photograph_gets_an_upright_mask(tmp_path, whole):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored left is shown on top
    Image.fromarray(halves()).convert("RGB").save(tmp_path / "photo.jpg", exif=exif, quality=95)
    (mask,) = predict_files(whole, [tmp_path / "photo.jpg"], tmp_path / "out", PALETTE, overlay=True)
    np.testing.assert_array_equal(read(mask), halves().T > 127)
    assert read(tmp_path / "out-overlays" / "photo.png").shape == (16, 10, 3)


def test_overlay_and_scores(tmp_path, whole):
    picture(tmp_path / "in" / "a.jpg")
    image = tmp_path / "in" / "a.jpg"
    predict_files(whole, [image], tmp_path / "out", PALETTE, overlay=True, scores=True)
    for folder in ("out", "out-overlays", "out-scores"):
        assert files(tmp_path / folder) == ["a.png"]
    confidence = whole.predict(read(image)).confidence
    scores = read(tmp_path / "out-scores" / "a.png")
    assert scores.dtype == np.uint8
    np.testing.assert_allclose(scores / 255, confidence, atol=0.51 / 255)
    overlay, source = read(tmp_path / "out-overlays" / "a.png"), read(image)
    assert overlay.shape == source.shape
    assert not np.array_equal(overlay, source)
    names = ["first", "second"]
    predict_files(whole, [image], tmp_path / "out", PALETTE[:2], classes=names, overlay=True)
    legend = read(tmp_path / "out-overlays" / "a.png")
    assert legend.shape[1:] == source.shape[1:] and legend.shape[0] > source.shape[0]
    assert np.array_equal(legend[: len(source)], overlay)  # the picture itself stays as it is


def test_clashing_images_each_get_a_mask(tmp_path, whole):
    picture(tmp_path / "x" / "a.png", 4, 6)
    picture(tmp_path / "x" / "a.jpg", 8, 6)
    picture(tmp_path / "y" / "a.jpg", 12, 6)
    written = predict_files(whole, [tmp_path / "x", tmp_path / "y"], tmp_path / "out", PALETTE)
    assert [read(mask).shape[0] for mask in written] == [8, 4, 12]
    assert [mask.name for mask in written] == ["x_a.jpg.png", "a.png.png", "y_a.jpg.png"]


# ---- what must not happen


@pytest.mark.parametrize("given", ["in", "in/a.png", "in/*.png"])
@pytest.mark.parametrize("out", ["in", "in/../in"])
def test_masks_never_land_among_the_images(tmp_path, whole, given, out):
    original = picture(tmp_path / "in" / "a.png").read_bytes()
    with pytest.raises(DataError, match=r"among the images .*a\.png.*--out"):
        predict_files(whole, [tmp_path / given], tmp_path / out, PALETTE)
    assert (tmp_path / "in" / "a.png").read_bytes() == original
    assert files(tmp_path / "in") == ["a.png"]


def test_a_second_run_does_not_read_the_masks_of_the_first(tmp_path, whole):
    picture(tmp_path / "a.jpg")
    for given in (tmp_path, tmp_path / "**" / "*.*"):
        for _ in range(2):
            written = predict_files(whole, [given], tmp_path / "masks", PALETTE)
            assert written == [tmp_path / "masks" / "a.png"]


def test_masks_may_lie_above_the_images(tmp_path, whole):
    picture(tmp_path / "in" / "a.jpg")
    assert predict_files(whole, [tmp_path / "in"], tmp_path, PALETTE) == [tmp_path / "a.png"]


def test_out_that_is_a_file_is_refused(tmp_path, whole):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="out: is a file"):
        predict_files(whole, [picture(tmp_path / "a.png")], tmp_path / "out", PALETTE)


def test_bad_images_do_not_stop_the_others(tmp_path, whole):
    folder = tmp_path / "in"
    for name in "abcdefg":
        picture(folder / f"{name}.png", 64, 64)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:90])
    (folder / "f.png").write_text("no image")
    with pytest.raises(DataError) as error:
        predict_files(whole, [folder], tmp_path / "out", PALETTE, overlay=True)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("2 of 7 images could not be predicted, the masks of the other 5 are in")
    assert set(re.findall(r"\w\.png", message)) == {"b.png", "f.png"}
    assert files(tmp_path / "out") == files(tmp_path / "out-overlays") == [f"{x}.png" for x in "acdeg"]


def test_only_bad_images(tmp_path, whole):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="1 of 1 images could not be predicted, nothing was written"):
        predict_files(whole, [tmp_path / "a.png"], tmp_path / "out", PALETTE)
    assert not (tmp_path / "out").exists()


def test_too_large_an_image_is_refused(tmp_path, whole):
    with pytest.raises(DataError, match=r"a\.png"):
        predict_files(whole, [picture(tmp_path / "a.png")], tmp_path / "out", PALETTE, max_pixels=100)


def test_an_error_in_writing_is_not_lost(tmp_path, whole, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("allspark.inference.files.write_mask", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(whole, [picture(tmp_path / "a.png")], tmp_path / "out", PALETTE)


def test_pictures_that_cannot_be_read_are_found(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.HEIC", "sub/c.dng", ".hidden.heic", "d.txt"):
        (tmp_path / "in" / name).touch()
    expected = [tmp_path / "in" / "b.HEIC", tmp_path / "in" / "sub" / "c.dng"]
    assert unread_inputs([tmp_path / "in"]) == expected
    assert unread_inputs([tmp_path / "in" / "*"]) == expected[:1] and unread_inputs([tmp_path / "in" / "a.png"]) == []
