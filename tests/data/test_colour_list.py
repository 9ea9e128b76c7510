"""The random list of colours: each change is Pillow's; which and how strong follows from the generator alone."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from allspark.config.schema import ViewConfig
from allspark.data.colour_list import CHANGES, change_colours, draw_changes
from allspark.data.views import unlabeled_views


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(20, 200, (24, 31, 3), np.uint8))


def changed(name, image, chance):
    return np.asarray(change_colours(image, [(name, chance)]))


def test_there_are_the_eleven_of_the_paper():
    assert len(CHANGES) == 11


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.999])
def test_each_change_is_pillows(image, chance):
    factor = 0.95 - 0.9 * chance
    expected = {
        "identity": image,
        "autocontrast": ImageOps.autocontrast(image),
        "equalise": ImageOps.equalize(image),
        "blur": image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * chance)),
        "contrast": ImageEnhance.Contrast(image).enhance(factor),
        "brightness": ImageEnhance.Brightness(image).enhance(factor),
        "colour": ImageEnhance.Color(image).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(image).enhance(factor),
        "posterise": ImageOps.posterize(image, {0.0: 4, 0.3: 5, 0.999: 7}[chance]),
        "solarise": ImageOps.solarize(image, {0.0: 1, 0.3: 77, 0.999: 255}[chance]),
    }
    assert expected.keys() | {"hue"} == CHANGES.keys()
    for name, theirs in expected.items():
        assert np.array_equal(changed(name, image, chance), np.asarray(theirs)), name


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.5, 0.999])
def test_hue_turns_by_half_a_circle_at_most(image, chance):
    steps = int((chance - 0.5) * 255) % 256  # of the 8-bit channel, wrapping
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(steps))
    theirs = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
    ours = changed("hue", image, chance)
    assert np.array_equal(ours, theirs if steps else np.asarray(image))
    before, after = (colorsys.rgb_to_hsv(*np.asarray(x)[3, 5] / 255) for x in (image, ours))
    away = (after[0] - before[0] - (chance - 0.5) + 0.5) % 1 - 0.5
    assert abs(away) < 0.05 and after[2] == pytest.approx(before[2], abs=0.01)


def test_one_to_three_changes_with_equal_chances():
    rng = np.random.default_rng(0)
    draws = [draw_changes(rng) for _ in range(6000)]
    lengths = Counter(map(len, draws))
    assert lengths.keys() == {1, 2, 3} and all(abs(n - 2000) < 200 for n in lengths.values())
    names = Counter(name for draw in draws for name, _ in draw)
    assert names.keys() == CHANGES.keys() and all(abs(n - 12000 / 11) < 150 for n in names.values())
    chances = [chance for draw in draws for _, chance in draw]
    assert 0 <= min(chances) < 0.01 and 0.99 < max(chances) < 1


def test_a_strong_view_is_its_weak_view_changed(image):
    """Padding too: histograms are of the whole crop."""
    config = ViewConfig(scale=(0.6, 1.2))
    for seed in range(30):
        rngs = np.random.default_rng(seed), np.random.default_rng(seed + 100)
        weak, _, (strong,) = unlabeled_views(image, (28, 28), config, rngs[0], [rngs[1]], "random-list")
        changes = draw_changes(np.random.default_rng(seed + 100))
        assert np.array_equal(strong, np.asarray(change_colours(Image.fromarray(weak), changes)))
        plain, _, _ = unlabeled_views(image, (28, 28), config, np.random.default_rng(seed), [rngs[1]])
        assert np.array_equal(weak, plain)
