"""The page on a run's course draws whatever the log holds."""

import json

import pytest
from PIL import Image

from allspark.errors import DataError
from allspark.figures import health as health_page
from allspark.figures.health import draw_run


@pytest.fixture
def drawn(monkeypatch):
    """The figure that is saved."""
    figures = []
    save = health_page.save_figure

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(health_page, "save_figure", keep)
    return figures


def write(run, rows):
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_number_of_the_log_is_drawn(tmp_path, drawn):
    looks = [
        {
            "step": step,
            "miou": 0.1 * step,
            "health": {
                "agreement": 0.5,
                "pseudo_accuracy": 0.6,
                "miou_labeled": 0.7,
                "miou_unlabeled": 0.2,
                "labeled_share": {"a": 0.75, "b": 0.25},
                "pseudo_share": {"a": 1.0, "b": 0.0},
                "memory_fill": {"a": 1.0, "b": 0.5},
                "memory_age": {"a": 3.0},
            },
            "warning": "the pseudo-labels are collapsing",
        }
        for step in (2, 4)
    ]
    write(tmp_path / "run", [{"step": 1, "loss": 1.0, "loss_labeled": 2.0, "loss_unlabeled": 1.0}, *looks])
    path = draw_run(tmp_path / "run", tmp_path / "page.png")
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    lines = {
        (axes.get_title(), line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in drawn[0].axes
        for line in axes.get_lines()
    }
    assert lines["loss", "labeled"] == ([1], [2.0])
    assert lines["mIoU [%] (watched training images)", "validation"][1] == pytest.approx([20, 40])
    assert lines["mIoU [%] (watched training images)", "training, unlabeled"][1] == pytest.approx([20, 20])
    assert lines["pseudo-labels of watched images [%]", "accuracy (masks exist)"][1] == pytest.approx([60, 60])
    assert lines["memory fill", "b"][1] == pytest.approx([0.5, 0.5])
    assert lines["memory age", "a"] == ([2, 4], [3.0, 3.0])
    bars = [patch.get_height() for patch in drawn[0].axes[3].patches]
    assert bars == pytest.approx([75, 25, 100, 0])
    assert "collapsing" in drawn[0]._supxlabel.get_text()


def test_a_supervised_run_has_less_to_show(tmp_path, drawn):
    write(tmp_path / "run", [{"step": 2, "miou": 0.1, "health": {"labeled_share": {"a": 1.0}}}])
    draw_run(tmp_path / "run", tmp_path / "page.png")
    texts = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert texts.count("nothing to show") == 2


@pytest.mark.parametrize("rows", [None, [], [{"step": 1, "loss": 1.0}]])
def test_nothing_to_draw_is_one_line(tmp_path, rows):
    if rows is not None:
        write(tmp_path / "run", rows)
    with pytest.raises(DataError, match=r"run: .*after the first epoch"):
        draw_run(tmp_path / "run", tmp_path / "page.png")
