"""Plug-ins: files and installed packages with methods, data sets and encoders of a user's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from allspark.cli.app import main
from allspark.config.plugins import load_plugin
from allspark.engine.run import open_run
from allspark.engine.sinks import read_log
from allspark.errors import ConfigError
from tests.conftest import TINY
from tests.helpers import link_to

PLUGIN = '''
"""A method, an encoder and a data set of one's own."""

from typing import Literal

import torch
from torch import nn

import allspark


class Settings(allspark.MethodConfig):
    """Half the loss."""

    name: Literal["half"] = "half"
    factor: allspark.Probability = 0.5


@allspark.add_method
class Half(allspark.METHODS["supervised"]):
    settings = Settings

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.factor = settings.factor

    def forward(self, batch, progress):
        output = super().forward(batch, progress)
        terms = {name: self.factor * term for name, term in output.terms.items()}
        return allspark.StepOutput(terms, {"factor": torch.tensor(self.factor)}, output.class_pixels)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 3, 4, 1)
        self.coarse = nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, image):
        fine = self.fine(image).relu()
        return type("Output", (), {"feature_maps": (fine, self.coarse(fine))})


allspark.add_encoder("two-maps", lambda config, load_weights: allspark.Encoder(Two(), (8, 16), (4, 8), 8))
allspark.add_data_set("mine", allspark.DataSet(allspark.DATA_SETS["folder"].open))
'''
CHANGES = ["model.encoder=two-maps", "model.encoder_config={}", "data.source=mine", "method.factor=0.25"]


def run(*arguments):
    """In a process of its own, which knows nothing of other tests' plug-ins."""
    command = [sys.executable, "-m", "allspark.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mein Zusatz.py"
    path.write_text(PLUGIN)
    return path


def options(changes):
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_a_file_brings_a_method_an_encoder_and_a_data_set(plugin, tiny_folder, tmp_path):
    common = ["train", "--plugin", plugin, "--recipe", "folder", "--data", tiny_folder]
    changes = [*TINY, "method.name=half", *CHANGES]
    done = run(*common, "--out", tmp_path / "run", *options(changes), "--processes", "2")
    assert done.returncode == 0, done.stderr
    rows = read_log(tmp_path / "run")
    assert rows[0]["factor"] == 0.25 and rows[0]["loss"] == pytest.approx(0.25 * rows[0]["loss_labeled"])
    assert "factor 0.25" in done.stderr  # beside the bar, and in the table
    assert "factor" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    done = run("eval", tmp_path / "run", "--plugin", plugin)
    assert done.returncode == 0 and "mIoU" in done.stdout
    for command in (["eval", tmp_path / "run"], ["train", "--out", tmp_path / "run", "--resume"]):
        done = run(*command)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "no method 'half'" in done.stderr and "--plugin FILE" in done.stderr


@pytest.mark.slow
def test_a_study_hands_plug_ins_on_to_its_runs(plugin, tiny_folder, tmp_path):
    values = dict(change.split("=", 1) for change in [*TINY, *CHANGES[:3], "train.epochs=1"])
    del values["method.name"]  # a row's own
    del values["model.encoder_config.hidden_sizes"]
    del values["model.encoder_config.depths"]
    del values["model.encoder_config.num_attention_heads"]
    changes = "".join(f"  {name}: {value}\n" for name, value in values.items())
    (tmp_path / "my.yaml").write_text(
        f"base: folder\nset:\n{changes}  data.root: '{tiny_folder}'\nmethods:\n  half: {{method.factor: 0.25}}\n"
    )
    done = run("study", tmp_path / "my.yaml", "--out", tmp_path / "out", "--plugin", plugin)
    assert done.returncode == 0 and "| half |" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_package_needs_no_option(plugin, tiny_folder, tmp_path, monkeypatch):
    """An entry point names the module; it is imported when a name is not known otherwise."""
    site = tmp_path / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "mine_module.py").write_text(PLUGIN)
    (site / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (site / "mine-1.dist-info" / "entry_points.txt").write_text("[allspark.plugins]\nmine = mine_module\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    common = ["train", "--recipe", "folder", "--data", tiny_folder, "--out", tmp_path / "run"]
    done = run(*common, *options([*TINY, *CHANGES, "method.name=half"]))
    assert done.returncode == 0, done.stderr
    assert run("eval", tmp_path / "run").returncode == 0
    (site / "mine_module.py").write_text("1 / 0")
    done = run("eval", tmp_path / "run")
    assert done.returncode == 2 and "the installed plug-in mine (mine_module) fails: ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import allspark\n\n1 / 0\n", ", line 3: ZeroDivisionError: division by zero"),
        ("def broken(:\n", ", line 1: SyntaxError"),
        ("import no_such_module\n", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "import allspark\n@allspark.add_method\nclass M(allspark.Method):\n    pass\n",
            ", line 2: M: `settings` must name its MethodConfig class",
        ),
        (
            "import allspark\n@allspark.add_method\nclass M(allspark.Method):\n    settings = allspark.MethodConfig\n",
            ", line 2: MethodConfig: give it a name",
        ),
        (
            "import allspark\nallspark.add_method(allspark.METHODS['cps'])\n",
            ", line 2: there is a method 'cps' already",
        ),
        (
            "import allspark\nallspark.add_encoder('mit-b0', lambda config, load: None)\n",
            ", line 2: there is an encoder 'mit-b0' already",
        ),
        (
            "import allspark\nallspark.add_data_set('voc', None)\n",
            ", line 2: the name voc is taken by another data set",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, capsys, code, said):
    path = tmp_path / "wrong.py"
    path.write_text(code)
    assert main(["train", "--plugin", str(path), "--recipe", "folder"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --plugin {path}{said}")


@pytest.mark.parametrize("name", ["none.py", "folder", "text.txt"])
def test_a_file_that_is_none_is_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ConfigError, match=f"--plugin {tmp_path / name}: no such Python file"):
        load_plugin(tmp_path / name)


def test_a_file_runs_once(tmp_path, monkeypatch):
    path = tmp_path / "once.py"
    path.write_text(f"with open({str(tmp_path / 'count')!r}, 'a') as file: file.write('x')\n")
    for _ in range(2):
        load_plugin(path)
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.slow
def test_a_checkpoint_never_loads_a_plug_in(plugin, tiny_folder, tmp_path):
    """What a run was trained with may name code, but opening it executes none."""
    common = ["train", "--plugin", plugin, "--recipe", "folder", "--data", tiny_folder, "--out", tmp_path / "run"]
    assert run(*common, *options([*TINY, "method.name=half", "train.epochs=0.5"])).returncode == 0
    with pytest.raises(ValueError, match="no method 'half'"):
        open_run(tmp_path / "run")


PRETRAINING = '''
from typing import Literal

import torch

import allspark


class Settings(allspark.MethodConfig):
    """No labels."""

    name: Literal["agree"] = "agree"


@allspark.add_method
class Agree(allspark.Method):
    """Two strong views of a crop have to have the same features; a projection of the method's own learns too."""

    settings = Settings
    views = allspark.Views(labeled=None, strong=2)

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.project = torch.nn.Conv2d(self.segmenter.encoder.channels[-1], 4, 1)

    def forward(self, batch, progress):
        assert batch.labeled is None
        one, other = (self.project(self.segmenter.encode(view).maps[-1]) for view in batch.unlabeled.strong)
        distance = (one - other.detach()).square()
        return allspark.StepOutput({"agree": allspark.Term(distance.sum(), torch.tensor(distance.numel()))})

    def counts(self, batch):
        return {}
'''


@pytest.mark.slow
def test_a_method_without_labels_needs_none(tiny_folder, tmp_path):
    """Pretraining on a folder of images; the network is then what another run begins with."""
    path = tmp_path / "agree.py"
    path.write_text(PRETRAINING)
    data = link_to(tiny_folder, tmp_path / "data")
    (data / "masks").unlink()
    for name in ("train.txt", "val.txt"):
        (data / name).unlink()
    common = ["train", "--plugin", path, "--recipe", "folder", "--data", data, "--out", tmp_path / "run"]
    done = run(*common, *options([*TINY, "method.name=agree", "optim.name=adamw"]))
    assert done.returncode == 0, done.stderr
    assert "0 labelled, 13 unlabelled, 0 validation images" in done.stderr
    rows = [row for row in read_log(tmp_path / "run") if "loss" in row]
    assert len(rows) == 4 and rows[0]["loss"] == rows[0]["loss_agree"] > 0
    begun = ["train", "--recipe", "folder", "--data", tiny_folder, "--out", tmp_path / "second"]
    begun += options([*TINY, "method.name=supervised", f"train.begin_with={tmp_path / 'run'}"])
    done = run(*begun)
    assert done.returncode == 0 and "begins with the weights of" in done.stderr, done.stderr
