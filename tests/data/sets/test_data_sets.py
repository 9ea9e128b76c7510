"""Data sets are open: one of your own is opened, recognised, checked and split like those of the package."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from allspark import DataSet, Layout, Partition, Source, add_data_set, default_palette, divide_images, find_files
from allspark.cli.app import main
from allspark.config.schema import DataConfig
from allspark.data.partitions import digest, partition_of
from allspark.data.sets import DATA_SETS, layout_of, open_source
from allspark.errors import ConfigError, DataError
from tests.conftest import REPOSITORY


def open_garden(config, *, require_labels=True):
    """ROOT/photos, and ROOT/truth for some of them."""
    images, masks = find_files(config.root / "photos"), find_files(config.root / "truth")
    if not images:
        raise DataError(f"{config.root / 'photos'}: no image there")
    samples = Layout(config.root, images, masks, config.root / "photos", config.root / "truth")
    return divide_images(
        Source(config.root, ("soil", "rose"), default_palette(2)),
        config,
        samples,
        train=[sample for sample in samples.all() if not sample.id.startswith("val")],
        val=[sample for sample in samples.all() if sample.id.startswith("val")],
        require_labels=require_labels,
    )


GARDEN = DataSet(open_garden, marks=("photos",), partitions={(2, digest(["a", "b"])): Partition("garden", "first two")})


@pytest.fixture
def garden():
    """The data set, known under its name for one test."""
    add_data_set("garden", GARDEN)
    yield "garden"
    del DATA_SETS["garden"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "garden"
    for folder, names in {"photos": ["a", "b", "c", "d", "val1"], "truth": ["a", "b", "val1"]}.items():
        (root / folder).mkdir(parents=True)
        for seed, name in enumerate(names):
            values = np.random.default_rng(seed).integers(0, 2, (6, 8, 3), np.uint8)
            Image.fromarray(values * 99 if folder == "photos" else values[..., 0]).save(root / folder / f"{name}.png")
    return root


def config_of(root, **fields):
    return DataConfig.model_construct(source="garden", root=root, **fields)


def test_a_data_set_of_ones_own_is_opened_like_any_other(garden, root):
    source = open_source(config_of(root))
    assert [[s.id for s in part] for part in (source.labeled, source.unlabeled, source.val)] == [
        ["a", "b"],
        ["c", "d"],
        ["val1"],
    ]
    assert source.classes == ("soil", "rose")
    with pytest.raises(DataError, match="no such folder"):
        open_source(config_of(root / "gone"))


def test_its_folder_is_recognised_and_the_commands_serve_it(garden, root, capsys):
    assert layout_of(root) == "garden"
    assert main(["check", str(root)]) == 0
    assert "rose" in capsys.readouterr().out
    assert main(["check", str(root), "--source", "garden", "--json"]) == 0
    assert main(["split", str(root), "--labeled", "1", "--name", "one"]) == 0
    source = open_source(config_of(root, split="one"))
    assert (len(source.labeled), len(source.unlabeled)) == (1, 3)


def test_the_file_of_the_guide_is_a_plug_in(root):
    guide = (REPOSITORY / "docs" / "add-a-data-set.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    file = root.parent / "garden.py"
    file.write_text(code, "utf-8")
    for arguments in (["check"], ["split", "--labeled", "1", "--source", "garden"]):
        command = [sys.executable, "-m", "allspark.cli.app", arguments[0], str(root), *arguments[1:]]
        done = subprocess.run([*command, "--plugin", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert ("rose" if arguments == ["check"] else "1 labelled and 3 unlabelled") in done.stdout


def test_its_published_lists_are_recognised(garden, root):
    assert str(partition_of("garden", open_source(config_of(root)))) == "garden first two"
    (root / "other.txt").write_text("a\n")
    assert partition_of("garden", open_source(config_of(root, labeled=root / "other.txt"))) is None


def test_a_name_is_taken_once(garden):
    for name in (garden, "voc"):
        before = DATA_SETS[name]
        with pytest.raises(ConfigError, match=f"the name {name} is taken by another data set") as caught:
            add_data_set(name, DataSet(open_garden))
        assert DATA_SETS[name] is before and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("citiscapes", "did you mean cityscapes?"), ("vox", "did you mean voc?"), ("x", "none has a name like it")],
)
def test_an_unknown_name_is_one_line_that_names_the_nearest(name, hint, tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_source(DataConfig.model_construct(source=name, root=tmp_path))
    assert hint in str(caught.value) and ", ".join(DATA_SETS) in str(caught.value) and "\n" not in str(caught.value)
    assert f"no data set {name}" in str(caught.value)
