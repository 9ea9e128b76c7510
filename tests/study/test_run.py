"""A study runs what is missing, survives interruptions, and its table says what the runs' own results say."""

import csv
import json
import signal
import statistics
import subprocess
import sys
import time

import pytest
from PIL import Image

from allspark.cli.study import compare
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.result import read_result
from allspark.engine.sinks import read_log
from allspark.errors import ConfigError, DataError, UserError
from allspark.study.plan import load_study, plan
from allspark.study.table import fairness, rows_of, write_tables


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def runs_of(file, out):
    return plan(load_study(file), file, out)


def test_a_study_from_beginning_to_table(study_file, tmp_path, capsys):
    out = tmp_path / "out"
    compare(study_file, out, jobs=2)
    results = {(run.method, run.seed): read_result(run.out) for run in runs_of(study_file, out)}
    assert len(results) == 4 and all(results.values())
    with (out / "results.csv").open() as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    for method in ("supervised", "whole"):
        last = [100 * results[method, seed]["last_miou"] for seed in (0, 1)]
        assert float(table[method]["last_miou"]) == pytest.approx(statistics.fmean(last), abs=1e-3)
        assert float(table[method]["last_std"]) == pytest.approx(statistics.stdev(last), abs=1e-3)
        assert table[method]["steps"] == "2" and table[method]["seeds"] == "0 1"
    assert int(table["whole"]["images_seen"]) == 2 * int(table["supervised"]["images_seen"]) == 8
    text = (out / "results.md").read_text()
    assert "4 of 4 runs are finished" in text and "NOT EQUAL" not in text
    assert "same lists of images, same weight updates, same initial weights of encoder and decoder" in text
    assert text in capsys.readouterr().out
    with Image.open(out / "results.png") as picture:
        assert min(picture.size) > 200

    before = {run.out: (run.out / "result.json").stat().st_mtime_ns for run in runs_of(study_file, out)}
    study_file.write_text(study_file.read_text() + "paper: {whole: {all: 78.41}}\n")
    compare(study_file, out, jobs=1)  # nothing is missing
    assert before == {path: (path / "result.json").stat().st_mtime_ns for path in before}
    assert "| 78.41 |" in (out / "results.md").read_text()

    path = runs_of(study_file, out)[0].out / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 1}))
    compare(study_file, out, jobs=1)
    assert "NOT EQUAL: weight updates of ('all', 0)" in (out / "results.md").read_text()

    study_file.write_text(study_file.read_text().replace("optim.lr: 0.01", "optim.lr: 0.02"))
    with pytest.raises(ConfigError, match=r"made with optim\.lr = 0\.01, the study says 0\.02 now"):
        compare(study_file, out, jobs=1)


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(study_file, tmp_path):
    text = study_file.read_text().replace("name: allspark}", "name: allspark, model.encoder_config: {depths: [1, 1]}}")
    study_file.write_text(
        text.replace("  supervised:\n", "").replace("seeds:", "  supervised:\nseeds:").replace("[0, 1]", "[0]")
    )
    with pytest.raises(UserError, match=r"1 of 2 runs failed, the first: whole, all, seed 0: .*exit status 2"):
        compare(study_file, tmp_path / "out", jobs=1)
    assert "1 of 2 runs are finished" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_stopped_or_killed_goes_on(study_file, tmp_path, number):
    text = study_file.read_text().replace("train.epochs: 1", "train.epochs: 6").replace("seeds: [0, 1]", "seeds: [0]")
    study_file.write_text(text)
    whole, out = tmp_path / "whole", tmp_path / "out"
    compare(study_file, whole, jobs=2)
    command = [sys.executable, "-m", "allspark.cli.app", "study", str(study_file), "--out", str(out), "--jobs", "2"]
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    logs = [run.out / "log.jsonl" for run in runs_of(study_file, out)]
    deadline = time.monotonic() + 120
    while study.poll() is None and time.monotonic() < deadline and not all(log.is_file() for log in logs):
        time.sleep(0.02)
    study.send_signal(number)
    error = study.communicate()[1]
    if number == signal.SIGTERM:
        assert study.returncode == 143 and "go on with: allspark study" in error
    else:
        assert study.returncode == -signal.SIGKILL
    assert not all(read_result(run.out) for run in runs_of(study_file, out)), "it ended before it was stopped"
    compare(study_file, out, jobs=2)  # waits for what the killed one left behind
    for left, right in zip(runs_of(study_file, whole), runs_of(study_file, out), strict=True):
        a, b = (load_checkpoint(checkpoint_path(run.out, "last")) for run in (left, right))
        assert all((a.tensors[name] == b.tensors[name]).all() for name in a.tensors if not name.startswith("rng"))
        losses = [[row["loss"] for row in read_log(run.out) if "loss" in row] for run in (left, right)]
        assert losses[0] == losses[1] and len(losses[0]) == 12


def test_networks_that_differ_in_the_bottleneck_alone_must_begin_alike(study_file, tmp_path):
    other = "  batch only: {method.name: allspark, model.bottleneck_memory: false}\nseeds:"
    study_file.write_text(study_file.read_text().replace("seeds:", other))
    runs = runs_of(study_file, tmp_path / "out")
    for run in runs:
        run.out.mkdir(parents=True)
        result = {"lists": "same", "steps": 2, "initial_weights": "other" if run.method == "batch only" else "same"}
        (run.out / "result.json").write_text(json.dumps(result))
    assert fairness(runs)[0].startswith("NOT EQUAL: initial weights of encoder and decoder")


def test_rows_that_are_apart_say_so_under_the_table(study_file, tmp_path):
    text = study_file.read_text().replace("name: allspark}", "name: allspark, train.epochs: 2}")
    study_file.write_text(text.replace("seeds:", "  same: {method.name: pseudo-label}\nseeds:"))
    runs = runs_of(study_file, tmp_path / "out")
    result = {"lists": 1, "initial_weights": 1, "family": None, "partition": None, "data": "folder", "paper_miou": None}
    result |= dict.fromkeys(("best_miou", "last_miou"), 0.5) | {"labeled": 4, "encoder": "x", "device": "y", "seed": 0}
    result |= {"images_seen": 8, "train_seconds": 1.0, "peak_memory": 1, "warnings": []}
    for run in runs:
        run.out.mkdir(parents=True)
        (run.out / "result.json").write_text(json.dumps(result | {"steps": 4 if run.method == "whole" else 2}))
    table = write_tables(rows_of(runs, {}), runs, tmp_path, "title")
    assert "\nNot the method alone: whole: train.epochs 2 instead of 1.\n" in table
    assert "same weight updates" in table and "but for what is said below the table of some rows." in table
    with (tmp_path / "results.csv").open() as file:
        apart = {row["method"]: row["apart"] for row in csv.DictReader(file)}
    assert apart == {"supervised": "", "whole": "train.epochs 2 instead of 1", "same": ""}
    (runs[0].out / "result.json").write_text(json.dumps(result | {"steps": 3}))  # of supervised: not as said
    assert "NOT EQUAL: weight updates of ('all', 0)" in write_tables(rows_of(runs, {}), runs, tmp_path, "title")


def test_a_dry_run_writes_nothing(study_file, tmp_path, capsys):
    compare(study_file, tmp_path / "out", None, dry_run=True)
    assert capsys.readouterr().out.count("to do") == 4 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_lists_that_are_not_there_are_said_before_anything_runs(study_file, tmp_path, dry_run):
    extra = ["data.unlabeled=gone.txt"]
    with pytest.raises(
        DataError, match=r"seed 0: data.unlabeled: no such .* gone\.txt .*\(4 of 4 runs could not begin\)"
    ):
        compare(study_file, tmp_path / "out", None, extra=extra, dry_run=dry_run)
    assert not (tmp_path / "out").exists()


def test_gpus_are_given_out_in_turn(study_file, tmp_path, monkeypatch):
    from allspark.study import run

    seen = []

    class Process:
        returncode = 0

        def __init__(self, command, *, env, stdout, **rest):
            seen.append(env["CUDA_VISIBLE_DEVICES"])
            stdout.write(b"done\n")

        def poll(self):
            return 0

        def terminate(self):
            pass

        def wait(self):
            return 0

    monkeypatch.setattr(run.subprocess, "Popen", Process)
    runs = runs_of(study_file, tmp_path / "out")
    notes = []
    run.run_study(runs, jobs=2, gpus=["0", "3"], again="", note=notes.append, finished=lambda: None)
    assert sorted(seen) == ["0", "0", "3", "3"] and len(notes) == 8
