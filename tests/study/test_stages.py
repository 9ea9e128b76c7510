"""Rows that begin after another row: planned in order, labelled in between, trained on what the labels say."""

import json

import pytest

from allspark.cli.study import compare
from allspark.engine.result import read_result
from allspark.errors import ConfigError, UserError
from allspark.study import run as study_run
from allspark.study.plan import load_study, plan
from allspark.study.run import missing, run_study

CHAIN = """
  half:
    method.name: st++
    after: supervised
    label: {reliable: 0.5, checkpoint: last}
  all:
    method.name: st++
    after: half
    label: {images: "{after}/pseudo/rest.txt", also: "{after}/pseudo/list.txt", checkpoint: last}
seeds: [0]
"""


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def chain(study_file):
    text = study_file.read_text().replace("  whole: {method.name: allspark}\nseeds: [0, 1]\n", CHAIN.lstrip("\n"))
    text = text.replace("  data.pseudo: pseudo.txt\n", "")
    study_file.write_text(text.replace("  supervised:\n", "  supervised: {train.keep_every: 1}\n"))
    return study_file


def runs_of(file, out):
    return plan(load_study(file), file, out)


def test_stages_are_planned_with_the_run_before_and_the_list_that_it_gives(chain, tmp_path):
    first, half, whole = runs_of(chain, tmp_path / "out")
    assert (first.after, half.after, whole.after) == (None, first, half)
    assert half.config.data.pseudo == half.out / "pseudo" / "list.txt" and half.apart == {}
    assert half.stage.label.command(first.out, half.out) == [
        *("label", str(first.out), "--out", str(half.out / "pseudo"), "--reliable", "0.5", "--checkpoint", "last")
    ]
    words = whole.stage.label.command(half.out, whole.out)
    assert words[words.index("--images") + 1] == str(half.out / "pseudo" / "rest.txt")


def test_a_row_may_begin_with_the_weights_of_the_one_before(chain, tmp_path):
    text = chain.read_text().replace("    label: {reliable: 0.5, checkpoint: last}", "    train.begin_with: '{after}'")
    chain.write_text(text.replace("name: st++\n    after: supervised", "name: allspark\n    after: supervised"))
    first, half, _ = runs_of(chain, tmp_path / "out")
    assert half.config.train.begin_with == first.out and half.stage.label is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "after: supervised",
            "after: supervisd",
            "after: there is no row 'supervisd'; there are supervised, half",
        ),
        ("after: supervised", "after: all", "these wait for one another: half after all after half"),
        ("after: half", "after: all", "these wait for one another: all after all"),
        ("reliable: 0.5", "relyable: 0.5", "half: label.relyable: unknown, known are images, also, reliable"),
        ("reliable: 0.5", "reliable: 5", "half: label.reliable: input should be less than or equal to 1"),
        ("    after: supervised\n", "", "half: label and {after} need a row that goes before"),
    ],
)
def test_mistakes_are_one_line(chain, old, new, words):
    text = chain.read_text()
    assert old in text
    chain.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        runs_of(chain, chain.parent / "out")
    assert "\n" not in str(caught.value) and str(chain) in str(caught.value) and words in str(caught.value)


@pytest.mark.slow
def test_a_chain_runs_in_order_and_learns_from_its_own_labels(chain, tmp_path):
    out = tmp_path / "out"
    compare(chain, out, jobs=2)
    first, half, whole = runs_of(chain, out)
    assert [read_result(run.out)["pseudo"] for run in (first, half, whole)] == [0, 3, 6]
    lines = (whole.out / "pseudo" / "list.txt").read_text().splitlines()
    masks = [(whole.out / "pseudo" / line.split("\t")[1]).resolve() for line in lines]
    assert sum(mask.is_relative_to(half.out.resolve()) for mask in masks) == 3  # the reliable half is kept as it was
    assert all(mask.is_file() for mask in masks)
    finished = [json.loads((run.out / "result.json").read_text())["finished"] for run in (first, half, whole)]
    assert finished == sorted(finished)
    table = (out / "results.md").read_text()
    assert "NOT EQUAL" not in table and "Stages: half after supervised, all after half." in table
    assert missing(runs_of(chain, out)) == []
    chain.write_text(chain.read_text().replace("reliable: 0.5", "reliable: 0.6"))
    with pytest.raises(ConfigError, match=r"made as .*0\.5.*, the study says .*0\.6.* now"):
        missing(runs_of(chain, out))


def test_what_comes_after_a_failure_is_not_begun(chain, tmp_path, monkeypatch):
    begun = []

    class Process:
        returncode = 2

        def __init__(self, command, *, stdout, **rest):
            begun.append(command)
            stdout.write(b"error: no\n")

        def poll(self):
            return 2

        def terminate(self):
            pass

        def wait(self):
            return 2

    monkeypatch.setattr(study_run.subprocess, "Popen", Process)
    runs, notes = runs_of(chain, tmp_path / "out"), []
    with pytest.raises(UserError, match="3 of 3 runs failed, the first: supervised, all, seed 0: no"):
        run_study(runs, jobs=2, gpus=[], again="", note=notes.append, finished=lambda: None)
    assert len(begun) == 1
    assert "half, all, seed 0: not begun, for supervised, all, seed 0 is not finished" in notes
