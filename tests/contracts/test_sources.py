"""What every data set promises, on generated data in its true layout. A new one is picked up from DATA_SETS."""

import numpy as np
import pytest

from allspark.cli.app import main
from allspark.config.schema import DataConfig
from allspark.data.check import check
from allspark.data.decode import read_sample
from allspark.data.sets import DATA_SETS, layout_of, open_source
from allspark.errors import DataError
from tests.conftest import TINY
from tests.fakes import FAKES


@pytest.fixture(scope="module", params=DATA_SETS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def root(kind, tmp_path_factory):
    root = tmp_path_factory.mktemp(kind) / "ein Ordner"
    FAKES[kind](root)
    return root


@pytest.fixture
def source(kind, root):
    return open_source(DataConfig(source=kind, root=root))


def test_every_data_set_has_a_fake_and_a_name_that_the_configuration_knows():
    assert set(DATA_SETS) == set(FAKES)
    for name in DATA_SETS:
        assert DataConfig(source=name).source == name


def test_ids_are_unique_and_files_exist(source):
    for samples in (source.labeled, source.unlabeled, source.val):
        assert samples and len({sample.id for sample in samples}) == len(samples)
        assert all(sample.image.is_file() for sample in samples)
    training = {sample.id for sample in (*source.labeled, *source.unlabeled)}
    assert not training & {sample.id for sample in source.val}
    assert not {s.id for s in source.labeled} & {s.id for s in source.unlabeled}


def test_masks_fit_images_and_classes(source):
    seen = set()
    for sample in (*source.labeled, *source.val):
        image, mask = read_sample(sample, source, want_mask=True, max_pixels=1 << 20)
        assert mask.shape == (image.height, image.width)
        seen |= set(np.unique(mask).tolist())
    assert len(seen) > 2 and seen <= {*range(source.num_classes), source.ignore}


def test_every_class_has_a_name_and_a_colour_of_its_own(source):
    assert len(source.palette) == len(source.classes) == len(set(source.palette)) == source.num_classes
    assert len(set(source.classes)) == source.num_classes


def test_paths_lie_in_the_root_and_opening_again_gives_the_same(source, kind):
    for sample in (*source.labeled, *source.unlabeled, *source.val):
        assert sample.image.is_relative_to(source.root)
    assert open_source(DataConfig(source=kind, root=source.root)) == source


def test_the_layout_is_told_from_the_folder(kind, root):
    assert layout_of(root) == ("folder" if kind == "synthetic" else kind)


@pytest.mark.parametrize("fast", [True, False])
def test_check_finds_nothing_wrong(source, fast):
    report = check(source, crop=None, max_pixels=1 << 20, workers=1, fast=fast)
    # The colour of Potsdam's fake that belongs to no class is ignored in its tiles already.
    assert [finding.summary for finding in report.findings if finding.level == "error"] == []
    assert report.masks["labeled"] == len(source.labeled) and report.class_pixels["labeled"].sum() > 0


def test_own_lists_can_be_made_and_train(kind, root, tmp_path, capsys):
    folder = root / "splits" if kind != "voc" else root / "VOCdevkit" / "VOC2012" / "splits"
    assert main(["split", str(root), "--labeled", "2", "--seed", "1", "--stratified", "--name", "own"]) == 0
    assert len((folder / "own" / "labeled.txt").read_text().split("\n")) == 3
    options = [part for change in [*TINY, "train.epochs=1", "data.split=own"] for part in ("--set", change)]
    recipe = "folder" if kind == "synthetic" else kind
    arguments = ["train", "--recipe", recipe, "--data", str(root), "--out", str(tmp_path / "run"), *options]
    arguments += ["--set", f"data.source={kind}", "--set", "optim.lr_batch=null", "--set", "eval.mode=whole"]
    assert main([*arguments, "--set", "train.health_images=1", "--set", "data.crop=64"]) == 0
    assert "2 steps" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0


@pytest.mark.parametrize("kind", DATA_SETS)
def test_a_source_without_a_folder_is_one_clear_line(kind, tmp_path):
    for root in (None, *([] if kind == "synthetic" else [tmp_path / "gone", tmp_path])):
        with pytest.raises(DataError) as caught:
            open_source(DataConfig(source=kind, root=root))
        assert "\n" not in str(caught.value) and ("data.root" if root is None else str(root)) in str(caught.value)
