"""What AEL pastes, which pixels it lets count, and the regions that it finds on the device."""

import math

import pytest
import torch

from allspark.batch import IGNORE, LabeledBatch, Progress, UnlabeledBatch
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods import ael, build_method, equalization
from allspark.methods.draws import choose, draw_class, draws, key_of
from allspark.methods.regions import region_boxes, regions
from tests.conftest import TINY

EVENLY = (torch.arange(40) + 0.5) / 40


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, "method.name=ael", *changes]), 5)


def naive_regions(mask):
    """Sets of pixels that are connected by their sides."""
    left = {(int(y), int(x)) for y, x in mask.nonzero()}
    found = []
    while left:
        region, edge = set(), {left.pop()}
        while edge:
            region |= edge
            around = {(y + a, x + b) for y, x in edge for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))}
            edge = around & left
            left -= edge
        found.append(region)
    return found


def box_around(region):
    rows, columns = zip(*region, strict=True)
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.6, 1.0])
def test_regions_are_those_that_hang_together(share):
    masks = torch.rand(4, 17, 23, generator=torch.Generator().manual_seed(0)) < share
    for mask, numbers in zip(masks, regions(masks, sweeps=40), strict=True):
        assert torch.equal(numbers > 0, mask)
        found = {frozenset(map(tuple, (numbers == n).nonzero().tolist())) for n in numbers.unique() if n > 0}
        assert found == {frozenset(region) for region in naive_regions(mask)}


def test_a_region_with_more_turns_than_sweeps_falls_into_pieces():
    stairs = torch.zeros(1, 20, 20, dtype=torch.bool)
    for n in range(19):
        stairs[0, n, n : n + 2] = True
    assert len(regions(stairs, sweeps=40).unique()) == 2  # and 0
    assert len(regions(stairs, sweeps=2).unique()) > 2


def test_each_large_region_is_chosen_as_often():
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[1:4, 2:5] = mask[6:11, 3:6] = mask[8:10, 9:15] = mask[0, 15] = True
    large = {box_around(region) for region in naive_regions(mask) if len(region) > 9 - 0.5}
    assert len(large) == 3
    boxes, there = region_boxes(mask.expand(40, -1, -1), 8.5 / mask.numel(), EVENLY)
    chosen = [tuple(box) for box in boxes.tolist()]
    assert there.all() and set(chosen) == large
    assert all(chosen.count(box) in (13, 14) for box in large)
    assert not region_boxes(mask[None], 15 / mask.numel(), EVENLY[:1])[1].any()  # 15 are not more than 15
    assert not region_boxes(torch.zeros_like(mask)[None], 0.0, EVENLY[:1])[1].any()


def test_draws_are_uniform_and_differ_from_key_to_key():
    rows, columns = torch.arange(100)[:, None], torch.arange(120)
    drawn = [draws(torch.tensor(first), 7, rows, columns) for first in (0, 1)]
    for x in drawn:
        counts = torch.histc(x, 10, 0, 1)
        assert ((counts - 1200).square() / 1200).sum() < 27.9  # chi-squared, 9 degrees of freedom, 1 in 1000
        assert x.min() >= 0 and x.max() < 1 and len(x.unique()) > 11990
    between = torch.stack([drawn[0].flatten(), drawn[1].flatten(), drawn[0].roll(1, 1).flatten()])
    correlation = torch.corrcoef(between) - torch.eye(3)
    assert correlation.abs().max() < 4 / math.sqrt(12000)
    assert torch.equal(drawn[0], draws(torch.tensor(0), 7, rows, columns))


def test_classes_are_drawn_as_often_as_they_are_likely():
    probability = torch.tensor([0, 0.5, 0, 0.2, 0.3, 0])
    drawn = draw_class(probability, (torch.arange(1000) + 0.5) / 1000)
    assert torch.bincount(drawn, minlength=6).tolist() == pytest.approx([0, 500, 0, 200, 300, 0], abs=1)
    assert draw_class(probability, torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)).tolist() == [1, 4]


def test_one_of_those_that_can_be_is_chosen():
    eligible = torch.tensor([[False, True, False, True, True]]).expand(30, -1)
    chosen = choose(eligible, (torch.arange(30) + 0.5) / 30)
    assert torch.bincount(chosen).tolist() == [0, 10, 0, 10, 10]
    assert choose(torch.zeros(1, 4, dtype=torch.bool), torch.tensor([0.7])).tolist() == [0]


@pytest.mark.parametrize("draw_count", [1, 3])
def test_pixels_of_drawn_classes_come_from_the_neighbour(draw_count):
    method = build("method.paste=1", f"method.paste_draws={draw_count}")
    mask = torch.randint(0, 5, (5, 16, 16), generator=torch.Generator().manual_seed(0))
    mask[:, :4] = IGNORE
    image = torch.arange(5.0)[:, None, None, None].expand(-1, 3, 16, 16)
    chance = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.8])
    pasted = method.pasted(LabeledBatch(image, mask), UnlabeledBatch(torch.zeros(5, 3, 16, 16), chance=chance))
    for i, other in enumerate([1, 0, 3, 2]):
        from_other = pasted.image[i, 0] == other
        given = mask[other][from_other].unique()
        assert torch.equal(from_other, torch.isin(mask[other], given))  # whole classes
        assert 1 <= len(given) <= draw_count and 0 not in given and IGNORE not in given
        expected = mask[i].where(~from_other | (mask[i] == IGNORE), mask[other])
        assert torch.equal(pasted.mask[i], expected)
    assert torch.equal(pasted.image[4], image[4]) and torch.equal(pasted.mask[4], mask[4])  # its own neighbour


def test_half_of_the_images_get_pasted_pixels():
    method = build()
    chance = torch.rand(400, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1, 5).view(2, 2).expand(400, -1, -1)
    image = torch.arange(400.0)[:, None, None, None].expand(-1, 3, 2, 2)
    pasted = method.pasted(LabeledBatch(image, mask), UnlabeledBatch(torch.zeros(400, 3, 2, 2), chance=chance))
    changed = (pasted.image != image).flatten(1).any(1)
    assert changed.double().mean() == pytest.approx(0.5, abs=0.08)


def images(labels, chance):
    """What a teacher found in four images, all sure, and then in their partners."""
    labels = torch.cat([torch.zeros_like(labels), labels])
    every = torch.ones_like(labels, dtype=torch.bool)
    found = ael.Found(labels, every.double(), every, every, labels)
    boxes = torch.tensor([[0, 0, 5, 7]]).expand(1, 4, 1, 4)
    return found, UnlabeledBatch(torch.zeros(4, 3, *labels.shape[1:]), boxes=boxes, chance=chance)


def test_a_box_is_around_a_region_of_a_weak_class_in_an_image_that_has_one():
    method = build()
    method.running.copy_(torch.tensor([1.0, 1.0, 1.0, -50.0, 1.0]))  # in effect all draws are class 3
    labels = torch.zeros(4, 32, 32, dtype=torch.int64)
    labels[1, 4:12, 6:20] = labels[3, 20:30, 1:9] = 3
    labels[2, 1:3, 1:3] = 3  # too small
    places = {1: (4, 6, 12, 20), 3: (20, 1, 30, 9)}
    donors = set()
    for chance in torch.rand(6, 4, generator=torch.Generator().manual_seed(0)):
        donor, where = method.boxes(*images(labels, chance))
        for number, inside in zip(donor.tolist(), where, strict=True):
            assert box_around(map(tuple, inside.nonzero().tolist())) == places[number] and number in places
            donors.add(number)
    assert donors == {1, 3}


@pytest.mark.parametrize("change", ["method.adaptive_boxes=true", "method.adaptive_boxes=false"])
def test_without_a_region_the_loader_s_box_of_the_own_partner_is_pasted(change):
    method = build(change)
    method.running.copy_(torch.tensor([1.0, 1.0, 1.0, -50.0, 1.0]))
    donor, where = method.boxes(*images(torch.ones(4, 32, 32, dtype=torch.int64), torch.rand(4)))
    assert donor.tolist() == [0, 1, 2, 3]
    assert all(box_around(map(tuple, inside.nonzero().tolist())) == (0, 0, 5, 7) for inside in where)


def test_padding_gives_no_region():
    method = build()
    method.running.copy_(torch.tensor([1.0, 1.0, 1.0, -50.0, 1.0]))
    found, unlabeled = images(torch.full((4, 32, 32), 3), torch.rand(4))
    valid = found.valid.clone()
    valid[4:, 10:] = False
    _, where = method.boxes(found._replace(valid=valid), unlabeled)
    assert all(box_around(map(tuple, inside.nonzero().tolist())) == (0, 0, 10, 32) for inside in where)


def test_the_surer_the_network_is_of_a_class_the_fewer_of_its_pixels_count():
    running = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    labels = torch.arange(3)[:, None, None].expand(-1, 80, 80)
    keep = equalization.kept(labels, running, draws(labels, 0, torch.arange(80)[:, None], torch.arange(80)))
    assert keep.double().mean((1, 2)).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
    assert keep[0].all() and not keep[2].any()


def test_maps_of_a_step_are_the_same_for_all_images_and_differ_between_classes_and_steps():
    labels = torch.tensor([2, 2, 1])[:, None, None].expand(-1, 9, 9)
    first, second, other = equalization.uniform_map(labels, Progress(4, 1, 10))
    assert torch.equal(first, second) and not torch.isclose(first, other).any()
    assert not torch.isclose(first, equalization.uniform_map(labels, Progress(5, 1, 10))[0]).any()


def test_whole_numbers_of_the_loader_s_chances_are_exact():
    chance = torch.rand(1000)
    assert torch.equal(key_of(chance).double() / 2**24, chance.double())


@pytest.mark.parametrize(
    ("value", "message"), [("[0, 7]", r"paste_never: there are 5 classes"), ("[0,1,2,3,4]", "no class is left")]
)
def test_classes_that_are_never_pasted_have_to_leave_some(value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(f"method.paste_never={value}")
    assert "\n" not in str(caught.value)
