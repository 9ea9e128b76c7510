"""Networks that could be deployed are scored side by side, and can be taken out of a checkpoint by name."""

import csv

import pytest

from allspark.config.files import apply_overrides
from allspark.data.sets import open_source
from allspark.engine.result import read_result
from allspark.engine.run import open_run
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.errors import CheckpointError
from allspark.inference.evaluate import evaluate
from tests.helpers import Lines, assert_same_run


@pytest.mark.parametrize(
    ("changes", "deployed", "others"),
    [
        (["method.name=fixmatch"], "teacher", ["student"]),
        (["method.name=cps"], "first", ["second", "mean"]),
        (["method.name=supervised", "method.ema_decay=0.5"], "average", ["network"]),
    ],
)
def test_candidates_are_compared_and_can_be_opened(tiny_config, tiny_folder, tmp_path, changes, deployed, others):
    config = apply_overrides(tiny_config, [*changes, f"data.root={tiny_folder}", "optim.lr=0.05"])
    said, run = Lines(), tmp_path / "run"
    train(apply_overrides(config, ["eval.compare=true"]), run, sinks=[said])
    train(config, tmp_path / "plain")
    assert_same_run(run, tmp_path / "plain")  # to compare changes nothing
    assert f"the network that is scored and kept as best: {deployed}" in said.lines
    assert read_result(run)["network"] == deployed
    rows = [row for row in read_log(run) if "miou" in row]
    assert all(row["miou"] == row[f"miou_{deployed}"] for row in rows) and len(rows) == 2
    assert not any(f"miou_{deployed}" in row for row in read_log(tmp_path / "plain"))
    with (run / "log.csv").open() as file:
        assert f"miou_{others[0]}" in next(csv.reader(file))

    source = open_source(config.data)
    for name in (deployed, *others):
        opened = open_run(run, "last", name)
        found = evaluate(opened.predictor(), source.val, source, workers=0, max_pixels=10**8).miou
        assert found == pytest.approx(rows[-1][f"miou_{name}"], abs=1e-12)
    assert open_run(run, "best", deployed).checkpoint == "best"
    with pytest.raises(CheckpointError, match=f"best.safetensors: holds the {deployed} alone, not the {others[0]}"):
        open_run(run, "best", others[0])
    with pytest.raises(CheckpointError, match=f"has no network 'mine'; there are .*{others[0]}"):
        open_run(run, "last", "mine")


def test_one_network_has_no_rival(tiny_config, tiny_folder, tmp_path):
    config = apply_overrides(tiny_config, ["method.name=supervised", f"data.root={tiny_folder}", "eval.compare=true"])
    said = Lines()
    train(config, tmp_path / "run", sinks=[said])
    assert not any("miou_network" in row for row in read_log(tmp_path / "run"))
    assert not any("kept as best" in line for line in said.lines)
    assert read_result(tmp_path / "run")["network"] == "network"
