"""What a study file may say, and that the runs it plans can be compared."""

import pytest

from allspark.config.methods import METHOD_CONFIGS
from allspark.config.presets import read_preset
from allspark.data.sets import DATA_SETS
from allspark.errors import ConfigError
from allspark.study.plan import load_study, plan
from tests.conftest import REPOSITORY


def planned(path, text=None):
    if text is not None:
        path.write_text(text)
    return plan(load_study(path), path, path.parent / "out")


def test_runs_of_a_study(study_file):
    runs = planned(study_file)
    assert [(run.method, run.seed, run.config.method.name) for run in runs] == [
        ("supervised", 0, "supervised"),
        ("whole", 0, "allspark"),
        ("supervised", 1, "supervised"),
        ("whole", 1, "allspark"),
    ]
    assert [run.config.seed for run in runs] == [0, 0, 1, 1]
    assert len({run.out for run in runs}) == 4


def test_all_but_method_network_and_seed_is_equal(study_file):
    text = study_file.read_text() + "partitions:\n  1/2: {data.split: half}\n  1/4: {data.split: 'quarter{seed}'}\n"
    runs = planned(study_file, text)
    assert len(runs) == 8
    same = {"data", "views", "optim", "train", "eval"}
    for left in runs:
        for right in runs:
            if (left.partition, left.seed) == (right.partition, right.seed):
                assert left.config.model_dump(include=same) == right.config.model_dump(include=same)
    assert {run.config.data.split for run in runs} == {"half", "quarter0", "quarter1"}


def test_what_a_row_changes_beside_the_method_is_known(study_file):
    row = (
        "method.name: allspark, optim.lr: 0.5, views.flip: 0, train.epochs: 3, train.log_every: 7, model.drop_path: 0.3"
    )
    text = study_file.read_text().replace("method.name: allspark", row)
    runs = {run.method: run for run in planned(study_file, text) if run.seed == 1}
    assert runs["supervised"].apart == {} and runs["supervised"].config.train.epochs == 1
    assert runs["whole"].apart == {
        "optim.lr": "0.5 instead of 0.01",
        "train.epochs": "3 instead of 1",
        "views.flip": "0 instead of 0.5",
    }
    assert runs["whole"].config.optim.lr == 0.5 and runs["whole"].config.train.log_every == 7
    same = text.replace("optim.lr: 0.5, views.flip: 0, train.epochs: 3", "optim.lr: 0.01, train.epochs: 1")
    assert all(run.apart == {} for run in planned(study_file, same))  # said, but nothing else than the others have
    of_seed = text.replace("optim.lr: 0.5, views.flip: 0, train.epochs: 3", "train.begin_with: 'runs/seed{seed}'")
    assert [run.apart for run in planned(study_file, of_seed) if run.method == "whole"] == [
        {"train.begin_with": "runs/seed{seed} instead of null"}
    ] * 2


def test_settings_of_a_method_may_stand_under_set(study_file):
    text = study_file.read_text().replace("set:", "set:\n  method.confidence: 0.5")
    text = text.replace("  supervised:\n", "  unimatch:\n").replace("name: allspark", "name: fixmatch")
    assert {run.config.method.confidence for run in planned(study_file, text)} == {0.5}


def test_each_method_stands_for_itself(study_file):
    names = [name for name in METHOD_CONFIGS if name != "supervised"]
    text = study_file.read_text()
    text = text.replace("  whole: {method.name: allspark}\n", "".join(f"  {name}:\n" for name in names))
    runs = planned(study_file, text)
    assert [(run.method, run.config.method.name) for run in runs if run.seed == 0] == [
        (name, name) for name in ("supervised", *names)
    ]


def test_a_base_may_be_a_file_beside_the_study(study_file):
    (study_file.parent / "mine.yaml").write_text("optim: {lr: 0.125}\n")
    text = study_file.read_text().replace("base: folder", "base: mine.yaml").replace("  optim.lr: 0.01\n", "")
    assert {run.config.optim.lr for run in planned(study_file, text)} == {0.125}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("method.name: allspark", "optim.lr: 1", "whole: say which it is, method.name: supervised or"),
        ("method.name: allspark", "method.name: allspark, data.crop: 32", "data.crop cannot be changed here"),
        ("method.name: allspark", "method.name: allspark, eval.mode: window", "eval.mode cannot be changed here"),
        (
            "method.name: allspark",
            "method.name: allspark, model.bottleneck_memry: off",
            "did you mean model.bottleneck_memory",
        ),
        ("method.name: allspark", "method.name: allspark, method.memory: off", "it is model.bottleneck_memory now"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "each seed once"),
        ("seeds: [0, 1]", "seeds: []", "seeds"),
        ("seeds: [0, 1]", "seed: [0]", "seed: unknown, known are base, set, methods"),
        ("set:", "set:\n  seed: 3", "seed differs from run to run"),
        ("base: folder", "base: nothing", "neither a recipe (folder"),
        ("base: folder\n", "", "base: field required"),
        ("seeds: [0, 1]", "partitions:\n  a: {train.epochs: 2}", "train.epochs cannot be changed here"),
        ("  supervised:\n", "  whole/:\n", "whole/: say which it is"),
        ("  supervised:\n", "  whole!: {method.name: supervised}\n", "would share the folder"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(study_file, old, new, words):
    text = study_file.read_text()
    assert old in text
    with pytest.raises(ConfigError) as caught:
        planned(study_file, text.replace(old, new))
    assert "\n" not in str(caught.value) and str(study_file) in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "base: *a", "methods: 3", "base: folder\nmethods: {}\n"])
def test_what_is_no_study(study_file, text):
    with pytest.raises(ConfigError) as caught:
        planned(study_file, text)
    assert "\n" not in str(caught.value) and str(study_file) in str(caught.value)


STUDIES = sorted((REPOSITORY / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_published_numbers_are_of_the_rows_and_lists_of_their_study(file):
    study = load_study(file)
    for scores in (*study.paper.values(), *(one.miou for one in study.published.values())):
        assert scores.keys() <= study.partitions.keys() and all(0 < score < 100 for score in scores.values())
    assert study.paper.keys() <= study.methods.keys()
    if study.presets:
        own = study.methods.keys() - {"SupBaseline-CNN", "SupBaseline-ViT", "SemiBaseline", "AllSpark"}
        assert all(read_preset(name, study.base) is not None for name in own)


@pytest.mark.parametrize("family", ["voc original", "voc augmented", "cityscapes", "coco"])
def test_allsparks_numbers_are_those_of_the_published_lists(family):
    study = load_study(REPOSITORY / "studies" / f"{family.replace(' ', '-')}.yaml")
    known = DATA_SETS[study.base].partitions.values()
    scores = {one.name: one.miou for one in known if one.family == family and one.miou is not None}
    assert study.paper == {"AllSpark": scores}


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_the_papers_tables_can_be_planned(file, tmp_path):
    study = load_study(file)
    runs = plan(study, file, tmp_path, ["data.root=somewhere"])
    assert len(runs) == len(study.methods) * len(study.partitions) * len(study.seeds)
    assert file.name in file.read_text().partition("\n\n")[0]  # its header says the command
    assert all(run.config.data.root.name == "somewhere" for run in runs)


def test_the_command_line_changes_all_runs(study_file):
    runs = plan(load_study(study_file), study_file, study_file.parent / "out", ["optim.lr=0.5", "data.split=x"])
    assert {(run.config.optim.lr, run.config.data.split) for run in runs} == {(0.5, "x")}
    with pytest.raises(ConfigError, match="seed differs from run to run"):
        plan(load_study(study_file), study_file, study_file.parent / "out", ["seed=3"])


PRESETS = """\
base: voc
presets: true
set: {train.epochs: 3}
methods:
  pseudo-label:
  unimatch:
  unimatch, 513: {method.name: unimatch, data.crop: [513, 513], optim.lr: 0.5}
  unimatch, MiT-B4: {method.name: unimatch, model.encoder: mit-b4}
"""


def test_rows_have_the_published_settings_of_their_methods(tmp_path):
    runs = {run.method: run for run in planned(tmp_path / "study.yaml", PRESETS)}
    plain, preset, other, network = (runs[name].config for name in runs)
    assert plain == runs["pseudo-label"].config and plain.model.encoder == "mit-b5" and plain.data.crop == (513, 513)
    assert (preset.data.crop, preset.model.encoder, preset.train.epochs) == ((321, 321), "resnet-101", 3)
    assert (other.data.crop, other.optim.lr, other.model.encoder) == ((513, 513), 0.5, "resnet-101")
    assert (network.model.encoder, network.model.output_stride, network.data.crop) == ("mit-b4", None, (321, 321))
    assert {name: run.apart for name, run in runs.items()} == {
        "pseudo-label": {},
        "unimatch": {"data.crop": "[321, 321] instead of [513, 513]"},
        "unimatch, 513": {"optim.lr": "0.5 instead of 0.001"},
        "unimatch, MiT-B4": {"data.crop": "[321, 321] instead of [513, 513]"},
    }
    plain_rows = PRESETS.replace("presets: true", "").replace("data.crop: [513, 513], ", "")
    without = planned(tmp_path / "study.yaml", plain_rows)
    assert {run.config.data.crop for run in without} == {(513, 513)} and not without[1].apart


def test_presets_are_for_the_recipes_of_their_data_sets(study_file):
    with pytest.raises(ConfigError, match="presets are for the bases voc, cityscapes, coco, not for folder"):
        planned(study_file, "presets: true\n" + study_file.read_text())
