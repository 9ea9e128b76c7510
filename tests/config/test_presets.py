"""Published settings of the methods: each is a valid configuration, and lies between recipe and command line."""

import pytest

from allspark.batch import Views
from allspark.cli.app import main
from allspark.cli.train import chosen
from allspark.config.files import apply_overrides, load_recipe
from allspark.config.methods import METHOD_CONFIGS
from allspark.config.presets import DATA_SETS, as_overrides, read_preset, with_preset
from allspark.config.resolve import images_per_update, network_config
from allspark.config.yaml import parse
from allspark.errors import ConfigError
from allspark.recipes import PRESETS

FILES = sorted(PRESETS.glob("*.yaml"))
THERE = [
    (path.stem, name)
    for path in FILES
    for name in DATA_SETS
    if path.stem in METHOD_CONFIGS and read_preset(path.stem, name) is not None
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_names_its_source_and_only_data_sets(path):
    text = path.read_text()
    assert text.startswith("# ") and set(parse(text, path.name)) <= set(DATA_SETS)
    assert all(line.startswith("# ") and len(line) <= 120 for line in text.partition("\n\n")[0].splitlines())


def test_methods_with_a_code_of_their_own_have_one():
    assert {name for name, _ in THERE} >= {
        *("fixmatch", "unimatch", "unimatch-v2", "cps", "cutmix-seg", "augseg", "st++"),
    }


@pytest.mark.parametrize(("method", "data_set"), THERE, ids=" ".join)
def test_each_is_a_valid_configuration(method, data_set):
    recipe, found = load_recipe(data_set), read_preset(method, data_set)
    applied = with_preset(recipe, data_set, None, [f"method.name={method}"])
    config = applied.config
    assert config.method.name == method and config.data.source == data_set
    network_config(config)
    assert config == apply_overrides(apply_overrides(recipe, [f"method.name={method}"]), as_overrides(found))
    images = images_per_update(config.data, config.optim.accumulate, 1, Views())
    assert config.optim.lr_batch == images  # the rate is the published one, with nothing else changed
    assert f"published settings of {method} for {data_set}" in applied.lines[0]
    said = {line.split(":")[0].strip(): line.rpartition(" -> ")[2] for line in applied.lines[1:]}
    kept = set(found) - said.keys()  # what the recipe has as well
    tree = apply_overrides(recipe, [f"method.name={method}"]).model_dump()
    for name in kept:
        section, _, field = name.partition(".")
        assert tree[section][field] == config.model_dump()[section][field], name


def test_what_the_user_asks_for_is_above_it(capsys):
    changes = ["method.name=unimatch", "optim.lr=0.5", "method.confidence=0.7"]
    config, _ = chosen("cityscapes", None, None, resume=False, changes=changes, paths={})
    said = capsys.readouterr().err
    assert (config.optim.lr, config.method.confidence, config.train.epochs) == (0.5, 0.7, 240)
    assert config.model.encoder == "resnet-101" and "  model.encoder: mit-b5 -> resnet-101\n" in said
    assert "optim.lr" not in said and "method.confidence" not in said


def test_another_network_takes_the_place_of_the_published_one(capsys):
    changes = ["method.name=u2pl" if "u2pl" in METHOD_CONFIGS else "method.name=augseg", "model.encoder=mit-b4"]
    config, _ = chosen("voc", None, None, resume=False, changes=changes, paths={})
    assert (config.model.encoder, config.model.output_stride, config.model.decoder) == ("mit-b4", None, "segformer")
    assert config.optim.lr_batch == 32 and config.data.batch_labeled == 4
    said = capsys.readouterr().err
    assert "its network is left out, since model.encoder is given" in said and "output_stride" not in said


@pytest.mark.parametrize(
    ("recipe", "preset", "changes"),
    [
        ("voc", "none", ["method.name=unimatch"]),
        ("voc", None, ["method.name=supervised"]),  # the recipe's settings are for it
        ("voc", None, []),
        ("cityscapes", None, ["method.name=cutmix-seg"]),
        ("folder", None, ["method.name=unimatch"]),
        ("dinov2-base", None, ["data.source=voc"]),
        ("voc", None, ["method.name=unimatch", "data.source=folder"]),
    ],
)
def test_where_there_is_none_nothing_is_changed_or_said(recipe, preset, changes, capsys):
    config, _ = chosen(recipe, None, None, resume=False, changes=changes, paths={}, preset=preset)
    assert config == apply_overrides(load_recipe(recipe), changes)
    assert capsys.readouterr().err == ""


def test_a_file_has_one_where_it_is_asked_for(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {source: voc}\nmethod: {name: unimatch}\noptim: {lr: 0.25}\n")
    options = {"resume": False, "changes": ["data.workers=0"], "paths": {}}
    plain, _ = chosen(None, tmp_path / "mine.yaml", None, **options)
    asked, _ = chosen(None, tmp_path / "mine.yaml", None, preset="voc", **options)
    assert (plain.optim.lr, asked.optim.lr, asked.data.crop) == (0.25, 0.001, (321, 321))


@pytest.mark.parametrize(
    ("recipe", "preset", "changes", "words"),
    [
        (
            "folder",
            "voc",
            ["method.name=unimatch"],
            "--preset voc: these settings were published for voc, and",
        ),
        (
            "cityscapes",
            "voc",
            ["method.name=unimatch"],
            "source is cityscapes; leave --preset out, or take --recipe",
        ),
        ("voc", "vok", ["method.name=unimatch"], "--preset vok: expected voc, cityscapes, coco or none"),
        ("cityscapes", "cityscapes", ["method.name=cutmix-seg"], "no published settings for it here, only for voc"),
        ("voc", "voc", ["method.name=supervised"], "method supervised has no published settings for it here; leave"),
        ("voc", None, ["method.name=unimach"], "did you mean unimatch?"),
    ],
)
def test_one_that_cannot_be_had_is_one_line(recipe, preset, changes, words):
    with pytest.raises(ConfigError) as caught:
        chosen(recipe, None, None, resume=False, changes=changes, paths={}, preset=preset)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_config_show_shows_what_train_would_take(tmp_path, capsys):
    from allspark.config.files import load_config

    assert main(["config", "show", "voc", "--set", "method.name=augseg"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "shown.yaml").write_text(out)
    config, _ = chosen("voc", None, None, resume=False, changes=["method.name=augseg"], paths={})
    assert load_config(tmp_path / "shown.yaml") == config
    assert err == capsys.readouterr().err  # the same lines
