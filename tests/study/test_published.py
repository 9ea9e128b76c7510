"""Published numbers stand beside a study's own, whether anything was run or not."""

import json

import pytest

from allspark.cli.study import compare
from allspark.errors import ConfigError
from allspark.study.plan import load_study, plan
from allspark.study.published import beside

NUMBERS = """
paper: {whole: {all: 78.4}}
published:
  supervised: {source: "somebody, 2020", miou: {all: 70.0}}
  gone: {source: "no code", miou: {all: 71.25}}
"""


def lines_of(file, out):
    study = load_study(file)
    return beside(plan(study, file, out), study.paper, study.published)


def test_methods_that_were_not_run_stand_there_too(study_file, tmp_path):
    study_file.write_text(study_file.read_text() + NUMBERS)
    lines = lines_of(study_file, tmp_path)
    assert lines[-8:] == [
        "| supervised | - / 70.0 / not run |",
        "| whole | 78.4 / - / not run |",
        "| gone | - / 71.25 / not run |",
        "",
        "Published elsewhere:",
        "",
        "- supervised: somebody, 2020",
        "- gone: no code",
    ]
    assert "| method | all |" in lines


def test_what_was_measured_takes_its_place(study_file, tmp_path):
    study_file.write_text(study_file.read_text() + NUMBERS)
    runs = plan(load_study(study_file), study_file, tmp_path)
    for run, score in zip(runs, (0.5, 0.25, 0.75), strict=False):  # one seed of the second row is missing
        run.out.mkdir(parents=True)
        (run.out / "result.json").write_text(json.dumps({"last_miou": score}))
    lines = lines_of(study_file, tmp_path)
    assert "| supervised | - / 70.0 / 62.50 ± 17.68 |" in lines
    assert "| whole | 78.4 / - / 25.00 (1 of 2 seeds) |" in lines


def test_a_study_without_published_numbers_has_no_such_table(study_file, tmp_path):
    assert lines_of(study_file, tmp_path) == []


def test_the_table_is_shown_before_anything_runs(study_file, tmp_path, capsys):
    study_file.write_text(study_file.read_text() + NUMBERS)
    compare(study_file, tmp_path / "out", jobs=None, dry_run=True)
    said = capsys.readouterr().out
    assert "| gone | - / 71.25 / not run |" in said and "to do supervised" in said.replace("  ", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("miou: {all: 70.0}", "miou: {}", "published.supervised.miou"),
        ('source: "somebody, 2020", ', "", "published.supervised.source: field required"),
        ("{all: 71.25}", "{all: much}", "published.gone.miou.all"),
    ],
)
def test_a_number_without_a_source_is_refused(study_file, old, new, words):
    text = study_file.read_text() + NUMBERS
    assert old in text
    study_file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_study(study_file)
    assert words in str(caught.value) and "\n" not in str(caught.value)
