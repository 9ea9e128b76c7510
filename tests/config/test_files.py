"""Configuration files, overrides and their messages."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path

import pytest
import yaml

from allspark.config.fields import Section
from allspark.config.files import (
    MAX_BYTES,
    apply_overrides,
    describe,
    load_config,
    load_recipe,
    save_config,
)
from allspark.config.methods import METHOD_CONFIGS, AllSpark
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.recipes import RECIPES


def names(model: type[Section], prefix: str = "", method: type[Section] = AllSpark) -> dict[str, str | None]:
    """Dotted names of all fields and their descriptions, found without the code under test."""
    found: dict[str, str | None] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= names(method if name == "method" else info.annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = info.description
    return found


def flat(config: Config) -> dict[str, object]:
    """Values by dotted name, found without the code under test."""
    return {name: reduce(getattr, name.split("."), config) for name in names(Config, method=type(config.method))}


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def override_message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Config(), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_names_what_differs_from_the_defaults_and_nothing_else(name):
    tree = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    written = {f"{key}.{inner}" for key, part in tree.items() if isinstance(part, dict) for inner in part}
    written |= {key for key, part in tree.items() if not isinstance(part, dict)}
    config = load_recipe(name)
    recipe, default = flat(config), flat(Config(method=METHOD_CONFIGS[config.method.name]()))
    other_method = {"method.name"} if config.method.name != Config().method.name else set()
    assert written == {key for key in recipe if recipe[key] != default[key]} | other_method


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_header_states_command_hardware_and_score(name):
    header = RECIPES[name].read_text(encoding="utf-8").partition("\n\n")[0]
    assert f"allspark train --recipe {name}" in header
    assert "Hardware:" in header
    assert "unverified" in header
    assert f"`allspark config show {name}` prints all" in header


def test_voc_recipe_is_the_papers():
    config = load_recipe("voc")
    assert (config.model.encoder, config.data.crop, config.train.epochs) == ("mit-b5", (513, 513), 80)
    assert (config.optim.lr, config.optim.head_multiplier, config.model.bottleneck_warmup_epochs) == (0.001, 10, 5)
    assert (config.data.batch_labeled + config.data.batch_unlabeled) * config.optim.accumulate == 16


@pytest.mark.parametrize(
    ("name", "nearest"), [("vok", "did you mean voc?"), ("foldr", "folder?"), ("my.yaml", "--config")]
)
def test_unknown_recipe_names_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=re.escape(nearest)):
        load_recipe(name)


def test_file_fills_up_with_defaults(tmp_path):
    config = load_config(write(tmp_path, "data:\n  crop: 96\noptim: {lr: 1e-2}\n"))
    assert config.data.crop == (96, 96)
    assert config.optim.lr == 0.01
    assert config.model == Config().model
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data:\n  bacth_labeled: 3\n", ": unknown key data.bacth_labeled: did you mean data.batch_labeled?"),
        ("lr: 0.1\n", ": unknown key lr: did you mean optim.lr?"),
        ("data:\n  lr: 0.1\n", ": unknown key data.lr: did you mean optim.lr?"),
        ("trian:\n  epochs: 3\n", ": unknown key trian: did you mean train?"),
        ("optim:\n  qqqq: 3\n", ": unknown key optim.qqqq: known are optim.name, optim.lr, optim.head_multiplier,"),
        ("data:\n  crop: wide\n", ": data.crop: expected [height, width], or one number for a square, got wide"),
        ("data:\n  crop: [96]\n", ": data.crop: expected [height, width], or one number for a square, got [96]"),
        ("data:\n  crop: [96, 0]\n", ": data.crop[1]: expected greater than or equal to 1, got 0"),
        ("optim:\n  lr: fast\n", ": optim.lr: expected a number, got fast"),
        ("method:\n  memory: maybe\n", ": model.bottleneck_memory: expected true or false, got maybe"),
        ("train:\n  precision: fp8\n", ": train.precision: expected 'fp32', 'bf16', 'fp16' or 'fp64', got fp8"),
        ("data: 5\n", ": data: expected a section with `name: value` lines, got 5"),
        ("- 1\n- 2\n", ": expected sections like"),
        ("data:\n  crop: 96\n  workers: 0\n  crop: 64\n", ", line 4: key crop appears twice (first in line 2)"),
        ("data:\n  1: 2\n", ", line 2: 1 is no name of a field"),
        ("data: {crop: 96\n", ", line 2: "),
        ("data:\n\tcrop: 96\n", ", line 2: "),
        ("seed: !!python/object/apply:os.system ['true']\n", ", line 1: tags (!)"),
        ("seed: !!int abc\n", ", line 1: tags (!)"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\n", ", line 1: tags (!), anchors (&) and aliases (*) are not supported"),
        ("data:\n  <<: {crop: 3}\n", ": unknown key data.<<"),
        ("x: " + "[" * 50_000, ": nested too deeply"),
        ("seed: " + "1" * 5000 + "\n", ": "),
        ("seed: \0\n", ": not YAML"),
    ],
)
def test_wrong_file_is_one_line_that_names_it(tmp_path, text, expected):
    assert message(write(tmp_path, text)).startswith(expected)


def test_missing_binary_and_huge_files_are_named(tmp_path):
    assert "no such file" in message(tmp_path / "none.yaml")
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in message(tmp_path / "my.yaml")
    assert "too many" in message(write(tmp_path, "#" * (MAX_BYTES + 1)))


def test_a_tag_is_not_executed(tmp_path):
    marker = tmp_path / "executed"
    message(write(tmp_path, f"seed: !!python/object/apply:pathlib.Path.touch [{marker}]\n"))
    assert not marker.exists()


def test_several_mistakes_are_named_together(tmp_path):
    text = message(write(tmp_path, "seed: x\noptim: {lr: y, pwoer: 1}\n"))
    assert "seed: expected a whole number" in text
    assert "optim.lr: expected a number" in text
    assert "did you mean optim.power?" in text


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=3", "optim.lr", 3.0),
        ("data.crop=[96, 128]", "data.crop", (96, 128)),
        ("data.crop=97", "data.crop", (97, 97)),
        ("data.split=1_8", "data.split", "1_8"),
        ("data.split=183", "data.split", "183"),
        ("data.root=2012", "data.root", Path("2012")),
        ("model.pretrained=none", "model.pretrained", "none"),
        ("model.bottleneck_memory=off", "model.bottleneck_memory", False),
        ("model.bottleneck_grouping=off", "model.bottleneck_grouping", "off"),
        ("optim.clip_norm=2", "optim.clip_norm", 2.0),
        ("train.steps_per_epoch=", "train.steps_per_epoch", None),
        ("model.encoder_config.layer_norm_eps=1e-6", "model.encoder_config", {"layer_norm_eps": 1e-6}),
        ("model.encoder_config={depths: [1, 2]}", "model.encoder_config", {"depths": [1, 2]}),
        ("data.labeled=lists/a=b.txt", "data.labeled", Path("lists/a=b.txt")),
        ("seed=7", "seed", 7),
    ],
)
def test_override(override, key, value):
    base = apply_overrides(Config(), ["train.steps_per_epoch=5"])
    config = apply_overrides(base, [override])
    before, after = flat(base), flat(config)
    assert after[key] == value
    assert type(after[key]) is type(value)
    assert [name for name in before if before[name] != after[name]] == [key]


def test_overrides_add_up_and_the_last_one_wins():
    config = apply_overrides(Config(), ["data.crop=96", "model.encoder_config.depths=[1]", "data.crop=64"])
    config = apply_overrides(config, ["model.encoder_config.hidden_sizes=[8]"])
    assert config.data.crop == (64, 64)
    assert config.model.encoder_config == {"depths": [1], "hidden_sizes": [8]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.bacth_labeled=3", "unknown key data.bacth_labeled: did you mean data.batch_labeled?"),
        ("dta.crop=3", "did you mean data.crop?"),
        ("data_crop=3", "did you mean data.crop?"),
        ("data.crop.height=3", "did you mean data.crop?"),
        ("data=3", "data is a section; name one of its fields, for example data.source"),
        ("data.crop", "expected KEY=VALUE"),
        ("data.crop=[1,", "--set data.crop=[1,"),
        ("data.batch_labeled=2.5", "data.batch_labeled: expected a whole number, got 2.5"),
        ("data.batch_labeled=0", "data.batch_labeled: expected greater than or equal to 1, got 0"),
        ("method.name=unimach", "method.name: no method 'unimach'; did you mean unimatch? there are supervised,"),
        ("method.memory=off", "unknown key method.memory: it is model.bottleneck_memory now"),
        ("method.confidence=0.9", "method.confidence: a setting of method fixmatch, unimatch"),
        ("seed=!!python/name:os.system", "tags (!)"),
    ],
)
def test_wrong_override_is_one_line(override, expected):
    text = override_message(override)
    assert expected in text
    assert text.startswith("--set")


def test_configuration_survives_saving(tmp_path):
    config = apply_overrides(
        Config(),
        [
            "data.split='1e-4'",
            "data.root=/data/with space: and #",
            "model.encoder_config={eps: 1e-12, name: 'off', count: 3, nested: {a: null, b: '12:30'}}",
            "model.encoder='null'",
            "eval.stride=0.1",
        ],
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", RECIPES)
def test_description_explains_every_field_and_reads_back(tmp_path, name):
    config = load_recipe(name)
    text = describe(config)
    assert load_config(write(tmp_path, text)) == config
    words = " ".join(re.sub(r"\s+#|\n# | # ", " ", text).split())
    for key, meaning in names(Config).items():
        assert re.search(rf"^ *{key.rpartition('.')[2]}: ", text, re.MULTILINE), key
        assert meaning, f"{key} has no description"
        assert " ".join(meaning.split()[:4]) in words, key
    assert max(len(line) for line in text.splitlines() if "encoder_config" not in line) <= 120


def test_another_method_brings_its_own_settings_and_keeps_what_all_have():
    config = apply_overrides(Config(), ["method.labeled_loss=ohem", "method.ohem_min_kept=7"])
    other = apply_overrides(config, ["method.confidence=0.9", "method.name=fixmatch"]).method  # in any order
    assert other == METHOD_CONFIGS["fixmatch"](labeled_loss="ohem", ohem_min_kept=7, confidence=0.9)
    again = apply_overrides(Config(method=other), ["method.name=fixmatch"]).method
    assert again == other  # the same method is not reset
    kin = apply_overrides(Config(method=other), ["method.name=unimatch"]).method
    assert kin == METHOD_CONFIGS["unimatch"](labeled_loss="ohem", ohem_min_kept=7, confidence=0.9)  # has a filter too
    far = apply_overrides(Config(method=other), ["method.name=augseg"]).method  # its own weights, not fixmatch's
    assert far == METHOD_CONFIGS["augseg"](labeled_loss="ohem", ohem_min_kept=7, confidence=0.9)
    back = apply_overrides(Config(method=other), ["method.name=supervised"]).method
    assert back == METHOD_CONFIGS["supervised"](labeled_loss="ohem", ohem_min_kept=7)


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_a_saved_configuration_holds_the_settings_of_its_method_alone(tmp_path, name):
    config = apply_overrides(Config(), [f"method.name={name}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["method"].keys() == METHOD_CONFIGS[name].model_fields.keys()
    assert set(names(Config, method=METHOD_CONFIGS[name])) >= {f"method.{key}" for key in tree["method"]}


def test_a_file_of_version_0_1_is_read(tmp_path):
    text = "method: {name: allspark, memory: false, grouping: off, warmup_epochs: 2, labeled_loss: ohem}\n"
    model = load_config(write(tmp_path, text)).model
    assert (model.bottleneck_memory, model.bottleneck_grouping, model.bottleneck_warmup_epochs) == (False, "off", 2)
    newer = load_config(write(tmp_path, text + "model: {bottleneck_memory: true}\n")).model
    assert newer.bottleneck_memory


def test_wrong_settings_of_a_method_are_one_line(tmp_path):
    text = "method: {name: unimatch, confidence: 2, warmup: 3}\n"
    said = message(write(tmp_path, text))
    assert "method.confidence: expected less than or equal to 1, got 2" in said and "unknown key method.warmup" in said
    assert "no method 'nix'" in message(write(tmp_path, "method: {name: nix}\n"))
    assert "a section" in message(write(tmp_path, "method: 5\n"))
