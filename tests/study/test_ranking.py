"""Which row is better, as far as the seeds tell, against hand-made numbers."""

import json
import math

import pytest

from allspark.study.figure import draw_cost
from allspark.study.ranking import Difference, ranking, score_at
from allspark.study.table import Row


def row(method, last, seconds=100.0, runs=()):
    results = [
        {"seed": seed, "last_miou": score / 100, "train_seconds": seconds, "steps": 50} for seed, score in last.items()
    ]
    scores = tuple(last.values())
    return Row("data", "1/8", method, scores, scores, None, tuple(results), runs=runs)


def test_differences_are_taken_seed_by_seed():
    one = Difference.of({0: 51.0, 1: 53.0, 2: 58.0}, {0: 50.0, 1: 51.0, 2: 55.0, 3: 90.0})
    # differences 1, 2, 3: mean 2, deviation 1, t of two degrees of freedom 4.303
    assert one.mean == pytest.approx(2) and one.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert not one.told_apart and str(one) == "+2.00 ± 2.48"
    close = Difference.of({0: 51.0, 1: 52.1, 2: 56.0}, {0: 50.0, 1: 51.0, 2: 55.0})
    assert close.told_apart
    single = Difference.of({0: 51.0}, {0: 50.0})
    assert not single.told_apart and str(single) == "+1.00"
    assert Difference.of({0: 1.0}, {1: 1.0}) is None


def test_rows_are_ranked_and_what_cannot_be_told_apart_is_said():
    rows = [
        row("supervised", {0: 50.0, 1: 51.0, 2: 55.0}),
        row("a|b", {0: 51.0, 1: 52.1, 2: 56.0}),
        row("noisy", {0: 53.0, 1: 49.0, 2: 56.9}),
        row("worse", {0: 40.0, 1: 41.0, 2: 45.0}),
    ]
    lines = ranking(rows)
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[1] for line in table[1:]] == ["a\\|b", "noisy", "supervised", "worse"]
    assert "against supervised" in table[0] and "against a\\|b" in table[0]
    assert table[1].endswith("| +1.03 ± 0.14 | - |") and table[4].endswith("| -11.03 ± 0.14 |")
    assert "By these seeds, cannot be told apart from a|b: noisy." in lines
    assert ranking(rows[:1]) == []


def log(folder, rows):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def test_at_equal_time_a_slow_row_has_what_it_had_then(tmp_path):
    slow = log(
        tmp_path / "slow",
        [
            {"step": 25, "loss": 1.0, "seconds": 90.0},
            {"step": 25, "miou": 0.4},
            {"step": 50, "loss": 1.0, "seconds": 180.0},
            {"step": 50, "miou": 0.6},
        ],
    )
    quick = log(tmp_path / "quick", [{"step": 50, "loss": 1.0, "seconds": 100.0}, {"step": 50, "miou": 0.5}])
    assert score_at(slow, 100) == 40 and score_at(slow, 180) == 60 and score_at(slow, 80) is None
    rows = [row("slow", {0: 60.0}, 180.0, (slow,)), row("supervised", {0: 50.0}, 100.0, (quick,))]
    lines = ranking(rows)
    assert [line for line in lines if line.startswith(("| slow", "| supervised"))] == [
        "| supervised | 50.00 | 1800 |",
        "| slow | 40.00 | 1000 |",
    ]
    draw_cost(rows, tmp_path / "cost.png", "title")
    assert (tmp_path / "cost.png").stat().st_size > 5000
    draw_cost(rows[:1], tmp_path / "none.png", "title")
    assert not (tmp_path / "none.png").exists()
