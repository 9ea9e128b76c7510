"""Views against the plain way: resize the whole image, pad, crop, flip, then Pillow's own colour operations."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from allspark.config.schema import ViewConfig
from allspark.data.colour import shift_hue
from allspark.data.views import draw_geometry, labeled_view, unlabeled_views

PLAIN = ViewConfig(jitter_p=0, grey_p=0, blur_p=0)


def picture(height, width, seed=0):
    """Noise over a gradient: every pixel counts, and neighbours are related."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 160, height)[:, None, None] * np.linspace(0.2, 1, width)[None, :, None] * [1, 0.6, 0.3]
    pixels = (slope + rng.integers(0, 96, (height, width, 3))).astype(np.uint8)
    mask = rng.integers(0, 6, (height, width)).astype(np.uint8)
    mask[rng.random((height, width)) < 0.1] = 255
    return Image.fromarray(pixels), mask


def plain_geometry(image, mask, crop, config, rng):
    """Whole-image resize, pad, crop, flip in the documented order of draws; mask None gives the valid map."""
    width, height = image.size
    long = max(width, height)
    side = int(rng.integers(max(1, int(long * config.scale[0])), max(1, int(long * config.scale[1])) + 1))
    if height > width:
        size = max(1, int(width * side / height + 0.5)), side
    else:
        size = side, max(1, int(height * side / width + 0.5))
    image = image.resize((size[0], height), Image.BILINEAR).resize(size, Image.BILINEAR)
    mask = Image.new("L", size, 0) if mask is None else Image.fromarray(mask).resize(size, Image.NEAREST)
    border = 0, 0, max(0, crop[1] - size[0]), max(0, crop[0] - size[1])
    image, mask = ImageOps.expand(image, border, 0), ImageOps.expand(mask, border, 255)
    top = int(rng.integers(0, image.height - crop[0] + 1))
    left = int(rng.integers(0, image.width - crop[1] + 1))
    box = left, top, left + crop[1], top + crop[0]
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < config.flip:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return image, np.asarray(mask)


def plain_hue(image, hue):
    if int(hue * 255) == 0:
        return image
    h, s, v = image.convert("HSV").split()
    turned = (np.asarray(h).astype(int) + int(hue * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")


def plain_colour(image, config, rng):
    jitter = rng.random() < config.jitter_p
    order = rng.permutation(4)
    factors = [rng.uniform(max(0, 1 - s), 1 + s) for s in config.jitter[:3]]
    factors.append(rng.uniform(-config.jitter[3], config.jitter[3]))
    grey, blur, sigma = rng.random() < config.grey_p, rng.random() < config.blur_p, rng.uniform(*config.blur_sigma)
    enhancers = (
        lambda x, f: ImageEnhance.Brightness(x).enhance(f),
        lambda x, f: ImageEnhance.Contrast(x).enhance(f),
        lambda x, f: ImageEnhance.Color(x).enhance(f),
        plain_hue,
    )
    if jitter:
        for part in order:
            image = enhancers[part](image, factors[part])
    if grey:
        image = image.convert("L").convert("RGB")
    return image.filter(ImageFilter.GaussianBlur(sigma)) if blur else image


SHAPES = [
    # image height, width; crop height, width: larger, smaller, crossing, with odd aspects, one pixel
    (40, 56, 33, 33),
    (56, 40, 33, 65),
    (40, 56, 90, 17),
    (37, 53, 128, 128),
    (90, 20, 31, 31),
    (97, 89, 16, 9),
    (1, 1, 12, 7),
    (1, 30, 8, 8),
    (30, 1, 1, 1),
]


@pytest.mark.parametrize(("height", "width", "crop_h", "crop_w"), SHAPES)
def test_labeled_view_equals_the_plain_way(height, width, crop_h, crop_w):
    image, mask = picture(height, width)
    config = ViewConfig(blur_p=0.6, scale=(0.3, 3.0))
    for seed in range(40):
        got_image, got_mask = labeled_view(image, mask, (crop_h, crop_w), config, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        want_image, want_mask = plain_geometry(image, mask, (crop_h, crop_w), config, rng)
        want_image = plain_colour(want_image, config, rng)
        np.testing.assert_array_equal(got_mask, want_mask)
        np.testing.assert_array_equal(got_image, np.asarray(want_image))
        assert got_image.dtype == got_mask.dtype == np.uint8


@pytest.mark.parametrize(("height", "width", "crop_h", "crop_w"), SHAPES)
def test_unlabeled_view_equals_the_plain_way(height, width, crop_h, crop_w):
    image, _ = picture(height, width)
    config = ViewConfig(scale=(0.3, 3.0))
    for seed in range(20):
        got, valid, strong = unlabeled_views(image, (crop_h, crop_w), config, np.random.default_rng(seed))
        want, padded = plain_geometry(image, None, (crop_h, crop_w), config, np.random.default_rng(seed))
        np.testing.assert_array_equal(got, np.asarray(want))
        np.testing.assert_array_equal(valid, padded == 0)
        assert valid.dtype == np.bool_ and strong == []


@pytest.mark.parametrize(("height", "width", "crop_h", "crop_w"), SHAPES)
def test_strong_views_are_the_same_crop_in_other_colours(height, width, crop_h, crop_w):
    """Each as if the whole crop, padding and all, had been recoloured; the weak view does not notice them."""
    image, mask = picture(height, width)
    config = ViewConfig(scale=(0.3, 3.0))
    for seed in range(10):
        rngs = [np.random.default_rng(100 + seed + v) for v in range(2)]
        weak, _, strong = unlabeled_views(image, (crop_h, crop_w), config, np.random.default_rng(seed), rngs)
        want, _ = plain_geometry(image, None, (crop_h, crop_w), config, np.random.default_rng(seed))
        np.testing.assert_array_equal(weak, np.asarray(want))
        for v, view in enumerate(strong):
            recoloured = plain_colour(want, config, np.random.default_rng(100 + seed + v))
            np.testing.assert_array_equal(view, np.asarray(recoloured))
        plain, _ = labeled_view(image, mask, (crop_h, crop_w), config, np.random.default_rng(seed), strong=False)
        np.testing.assert_array_equal(plain, weak)  # a weak labelled view is the same function


def test_strong_blur_over_padding_equals_the_plain_way():
    image, mask = picture(30, 30)
    config = ViewConfig(blur_p=1, blur_sigma=(6.0, 9.0), jitter_p=1, scale=(0.5, 1.0))
    for seed in range(20):
        got, _ = labeled_view(image, mask, (120, 150), config, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        want, _ = plain_geometry(image, mask, (120, 150), config, rng)
        np.testing.assert_array_equal(got, np.asarray(plain_colour(want, config, rng)))


@pytest.mark.parametrize("hue", [0.25, -0.25, 0.5, -0.01, 0.1])
def test_hue_equals_pillows_way_for_a_grid_of_colours(hue):
    steps = np.arange(0, 256, 3)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3).astype(np.uint8)
    image = Image.fromarray(colours)
    np.testing.assert_array_equal(np.asarray(shift_hue(image, hue)), np.asarray(plain_hue(image, hue)))


@pytest.mark.slow
@pytest.mark.parametrize("hue", [1 / 255, -0.4])
def test_hue_equals_pillows_way_for_every_colour(hue):
    values = np.arange(256, dtype=np.uint8)
    for red in range(256):
        colours = np.stack(np.broadcast_arrays(np.uint8(red), values[:, None], values[None]), -1)
        image = Image.fromarray(colours)
        np.testing.assert_array_equal(np.asarray(shift_hue(image, hue)), np.asarray(plain_hue(image, hue)))


def test_hue_zero_is_identity():
    image, _ = picture(9, 9)
    assert shift_hue(image, 0.0).tobytes() == image.tobytes()


def test_one_call_of_pillow_gives_the_same_picture_but_for_the_last_bit():
    image, mask = picture(75, 100)
    for seed in range(20):
        got, _ = labeled_view(image, mask, (500, 500), PLAIN, np.random.default_rng(seed))
        geometry = draw_geometry(75, 100, (500, 500), PLAIN, np.random.default_rng(seed))
        want = image.resize((geometry.width, geometry.height), Image.BILINEAR)
        want = np.asarray(ImageOps.mirror(want) if geometry.flip else want).astype(int)
        columns = slice(500 - geometry.width, 500) if geometry.flip else slice(0, geometry.width)
        assert np.abs(got[: geometry.height, columns] - want).max() <= 1


def test_image_and_mask_move_together():
    """Where the image shows its class by its brightness, the mask agrees in all views."""
    mask = np.zeros((48, 64), np.uint8)
    mask[10:40, 20:50] = 1
    image = Image.fromarray(np.repeat(mask[:, :, None] * 200 + 50, 3, axis=2).astype(np.uint8))
    for seed in range(30):
        view, cut = labeled_view(image, mask, (50, 40), PLAIN, np.random.default_rng(seed))
        brightness = view[..., 0].astype(int)
        inside = cut != 255
        agree = ((brightness > 150) == (cut == 1))[inside].mean()
        assert agree > 0.94
        assert (brightness[~inside] == 0).all()


def test_range_of_scale_crop_and_flip():
    config = ViewConfig(scale=(0.5, 2.0), flip=0.5)
    rng = np.random.default_rng(0)
    drawn = [draw_geometry(10, 20, (8, 8), config, rng) for _ in range(2000)]
    assert {g.width for g in drawn} == set(range(10, 41))
    assert all(g.height == int(10 * g.width / 20 + 0.5) for g in drawn)
    full = [g for g in drawn if g.width == 40]
    assert {g.top for g in full} == set(range(13))
    assert {g.left for g in full} <= set(range(33)) and max(g.left for g in full) > 25
    assert 0.45 < Counter(g.flip for g in drawn)[True] / 2000 < 0.55


def test_one_probability_changes_only_its_own_part():
    """Switching the colours off leaves the geometry as it was, and the mask is proof."""
    image, mask = picture(40, 40)
    one = labeled_view(image, mask, (32, 32), ViewConfig(), np.random.default_rng(5))[1]
    other = labeled_view(image, mask, (32, 32), PLAIN, np.random.default_rng(5))[1]
    np.testing.assert_array_equal(one, other)


def test_same_state_same_view_and_source_untouched():
    image, mask = picture(40, 50)
    before = image.tobytes(), mask.copy()
    first = labeled_view(image, mask, (32, 48), ViewConfig(), np.random.default_rng([1, 2]))
    second = labeled_view(image, mask, (32, 48), ViewConfig(), np.random.default_rng([1, 2]))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert image.tobytes() == before[0]
    np.testing.assert_array_equal(mask, before[1])
