"""CutMix boxes: where they may lie, how large they are, and what cannot be."""

from dataclasses import dataclass

import numpy as np
import pytest

from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.data.boxes import BetaBoxes, FrenchBoxes, HalfBoxes, UniMatchBoxes, require_boxes
from allspark.errors import ConfigError

KINDS = [
    UniMatchBoxes(1.0),
    FrenchBoxes(),
    FrenchBoxes(3, (0.25, 0.5)),
    HalfBoxes(1.0),
    HalfBoxes(),
    BetaBoxes(),
    BetaBoxes(((8.0, 2.0), (4.0, 4.0))),
]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("crop", [(1, 1), (7, 30), (64, 64), (513, 321)])
def test_boxes_lie_in_the_crop_and_follow_from_the_generator(kind, crop):
    for seed in range(50):
        boxes, again = (kind.draw(crop, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(boxes, again) and boxes.dtype == np.int64 and boxes.shape[1] == 4
        assert (boxes >= 0).all() and (boxes[:, 2:] <= crop).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    require_boxes(kind, crop)


def test_half_boxes_are_wider_than_half_of_the_crop_and_have_half_of_its_area():
    boxes = np.concatenate([HalfBoxes(1.0).draw((100, 80), np.random.default_rng(seed)) for seed in range(500)])
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert width.min() == 41 and width.max() == 79 and (height == np.round(4000 / width)).all()
    drawn = [HalfBoxes(0.5).draw((100, 80), np.random.default_rng(seed)).any() for seed in range(500)]
    assert 0.4 < np.mean(drawn) < 0.6


@pytest.mark.parametrize(("beta", "mean"), [((4.0, 4.0), 0.5), ((8.0, 2.0), 0.2)])
def test_beta_boxes_are_cut_off_at_the_border_around_a_centre_behind_the_first_eighth(beta, mean):
    height, width, shares = 300, 200, []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        share = 1 - rng.beta(*beta)
        y, x = (int(rng.integers(side // 8, side)) for side in (height, width))
        h, w = (int(side * share**0.5) // 2 for side in (height, width))
        expected = [max(0, y - h), max(0, x - w), min(height, y + h), min(width, x + w)]
        assert BetaBoxes((beta,)).draw((height, width), np.random.default_rng(seed)).tolist() == [expected]
        shares.append(4 * h * w / (height * width))
    assert np.mean(shares) == pytest.approx(mean, abs=0.015)


@dataclass
class Given:
    boxes: np.ndarray

    def draw(self, crop, rng):
        return self.boxes


@pytest.mark.parametrize("boxes", [[[0, 0, 10, 65]], [[-1, 0, 3, 3]], [[5, 5, 3, 9]], [1, 2, 3, 4], [[[1, 1, 2, 2]]]])
def test_boxes_of_a_plug_in_that_leave_the_crop_are_one_line(boxes):
    with pytest.raises(ConfigError, match=r"^Given: CutMix boxes are rows .* crop of 32 x 64 pixels, got \[.*\]$"):
        require_boxes(Given(np.array(boxes)), (32, 64))


@pytest.mark.parametrize("kind", [UniMatchBoxes, FrenchBoxes])
@pytest.mark.parametrize("area", [(0.5, 1.5), (0.0, 0.5), (0.5, 0.2)])
def test_boxes_larger_than_the_crop_are_refused(kind, area):
    with pytest.raises(ConfigError, match=r"^CutMix boxes are no larger than the crop: .* got \("):
        kind(area=area)


def test_a_crop_that_no_box_fits_into_ends_in_a_line_and_not_in_an_endless_search():
    narrow = UniMatchBoxes(1.0, area=(0.4, 0.4))
    with pytest.raises(ConfigError, match="no CutMix box fits into 20 x 2000 pixels"):
        narrow.draw((20, 2000), np.random.default_rng(0))
    narrow.draw((20, 40), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("box_area=[0.5, 1.5]", "expected less than or equal to 1, got 1.5"),
        ("box_area=[0.5, 0.2]", "expected [lowest, highest], both above 0, got [0.5, 0.2]"),
        ("box_area=0.5", "got 0.5"),
        ("confidence_weight=none", "expected"),
        ("distance=mse", "expected"),
    ],
)
def test_settings_of_cutmix_seg_out_of_range_are_one_line(change, words):
    with pytest.raises(ConfigError) as error:
        apply_overrides(Config(), ["method.name=cutmix-seg", f"method.{change}"])
    text = str(error.value)
    assert f"method.{change.split('=')[0]}" in text and words in text and "\n" not in text
