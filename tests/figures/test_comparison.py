"""Figures show what they are given."""

import numpy as np
from PIL import Image

from allspark.figures.comparison import Example, MethodResult, one_page, save_figure

CLASSES, PALETTE = ("ground", "sky", "ball"), ((120, 96, 64), (90, 170, 230), (220, 60, 60))


def results():
    rows = [{"step": step, "loss_labeled": 2 / step} for step in (1, 2, 3)] + [{"step": 3, "miou": 0.4}]
    return [
        MethodResult("supervised", rows, np.array([0.9, np.nan, 0.1]), 0.5),
        MethodResult("allspark", rows[:2], np.array([0.8, 0.2, 0.3]), 0.43),
    ]


def examples(count):
    image = Image.new("RGB", (20, 12), (10, 20, 30))
    mask = np.zeros((12, 20), np.uint8)
    return [Example(image, mask, {"supervised": mask, "allspark": mask}) for _ in range(count)]


def test_page_holds_curves_bars_and_pictures(tmp_path):
    figure = one_page("title", results(), examples(2), CLASSES, PALETTE)
    save_figure(figure, tmp_path / "sub" / "page.png")
    axes = [axes for half in figure.subfigs for axes in half.axes]
    lines = [axes for axes in axes if axes.lines and axes.get_legend()]
    assert [len(axes.lines) for axes in lines] == [2, 1]
    assert list(lines[0].lines[0].get_ydata()) == [2, 1, 2 / 3]
    assert list(lines[1].lines[0].get_ydata()) == [40]
    (bars,) = [axes for axes in axes if axes.patches]
    heights = [patch.get_height() for patch in bars.patches]
    assert np.allclose(heights, [90, 0, 10, 50, 80, 20, 30, 43])
    assert [label.get_text() for label in bars.get_xticklabels()] == [*CLASSES, "mean"]
    assert sum(len(axes.images) for axes in axes) == 2 * 4
    with Image.open(tmp_path / "sub" / "page.png") as page:
        assert page.size[0] > 1000


def test_page_without_examples_is_drawn():
    assert one_page("title", results(), [], CLASSES, PALETTE).subfigs
