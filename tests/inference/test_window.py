import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allspark.inference.window import plan, windowed
from tests.helpers import pixels

sizes = st.integers(1, 40)


@settings(max_examples=200, deadline=None)
@given(height=sizes, width=sizes, window=st.tuples(sizes, sizes), stride=st.floats(0.05, 1))
def test_windows_cover_every_pixel_lie_inside_and_have_one_size(height, width, window, stride):
    boxes = plan(height, width, window, stride)
    covered = np.zeros((height, width), dtype=int)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(window[0], height), min(window[1], width))
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 400), window=sizes, stride=st.floats(0.05, 1))
def test_there_are_no_more_windows_than_the_stride_asks_for(length, window, stride):
    boxes = plan(1, length, (1, window), stride)
    step = max(1, round(window * stride))
    assert len(boxes) == 1 + -(-max(length - window, 0) // step)


def test_the_last_window_is_aligned_to_the_far_edge():
    assert plan(4, 10, (8, 6), 2 / 3) == [(0, 0, 4, 6), (0, 4, 4, 10)]
    assert plan(10, 4, (6, 8), 0.5) == [(0, 0, 6, 4), (3, 0, 9, 4), (4, 0, 10, 4)]


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((0, 5), (2, 2), 0.5), ((5, 5), (2, 0), 0.5), ((5, 5), (2, 2), 0)]
)
def test_impossible_windows_are_refused(size, window, stride):
    with pytest.raises(ValueError, match="no windows of"):
        plan(*size, window, stride)


def context_net(crops):
    """Logits that depend on the whole crop and on the place in it, as a network's do."""
    height, width = crops.shape[-2:]
    place = torch.linspace(0, 1, height, dtype=crops.dtype)[:, None] * torch.linspace(0, 2, width, dtype=crops.dtype)
    mean = crops.mean((1, 2, 3))[:, None, None]
    return torch.stack([crops[:, 0] * place, crops[:, 1] + mean, crops[:, 2] * mean, -crops[:, 0] + place], dim=1)


def naive(image, window, stride):
    """One image, one window, one pixel row at a time, straight from the definition."""
    height, width = image.shape[-2:]
    steps = [max(1, round(side * stride)) for side in window]
    starts = []
    for length, side, step in zip((height, width), window, steps, strict=True):
        positions, position = [], 0
        while position + side < length:
            positions.append(position)
            position += step
        starts.append([*positions, max(0, length - side)])
    total = torch.zeros(4, height, width, dtype=image.dtype)
    count = torch.zeros(height, width, dtype=image.dtype)
    for top in starts[0]:
        for left in starts[1]:
            crop = image[:, top : top + window[0], left : left + window[1]]
            logits = context_net(crop[None])[0]
            probability = logits.exp() / logits.exp().sum(0)
            for row in range(crop.shape[1]):
                total[:, top + row, left : left + crop.shape[2]] += probability[:, row]
                count[top + row, left : left + crop.shape[2]] += 1
    return total / count


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    window=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.sampled_from([0.3, 0.5, 2 / 3, 1.0]),
    images=st.integers(1, 3),
    batch=st.integers(1, 5),
)
def test_stitched_result_equals_a_window_loop(size, window, stride, images, batch):
    image = torch.randn(images, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def forward(crops):
        calls.append(len(crops))
        return pixels(context_net(crops))

    stitched = windowed(forward, image, window, stride, batch)
    expected = torch.stack([naive(one, window, stride) for one in image])
    torch.testing.assert_close(stitched, expected, rtol=1e-12, atol=1e-12)
    assert max(calls) <= batch
    assert sum(calls) == images * len(plan(*size, window, stride))


def test_sums_are_single_precision_when_the_network_computes_in_half():
    image = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    half = windowed(lambda crops: pixels(context_net(crops).bfloat16()), image, (4, 4), 0.3, 2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(1), torch.ones(1, 9, 9), rtol=1e-6, atol=1e-6)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty"):
        windowed(context_net, torch.zeros(0, 3, 4, 4), (4, 4), 0.5, 2)
