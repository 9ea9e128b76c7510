"""The guides are followed word for word."""

from __future__ import annotations

import re
import shlex

import pytest

from allspark.batch import Progress
from allspark.cli.app import main
from allspark.config.files import apply_overrides
from allspark.config.methods import METHOD_CONFIGS
from allspark.config.schema import Config
from allspark.engine.sinks import read_log
from allspark.methods import METHODS, build_method
from tests.conftest import REPOSITORY, TINY
from tests.helpers import batch_of

GUIDE = (REPOSITORY / "docs" / "add-a-method.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """The guide's file in a folder of its own; afterwards the program does not know it any more."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    name = re.match(r'"""(\S+\.py):', code)[1]
    (tmp_path / name).write_text(code)
    before = set(METHODS)
    yield name
    for added in set(METHODS) - before:
        del METHODS[added], METHOD_CONFIGS[added]


@pytest.mark.slow
def test_add_a_method(followed, tmp_path, capsys):
    (commands,) = blocks("bash")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "allspark" and main(arguments) == 0, (line, capsys.readouterr())
    rows = read_log(tmp_path / "runs" / "mine")
    assert {"loss_labeled", "loss_unlabeled", "teacher_confidence"} <= rows[0].keys() and rows[-1]["step"] == 2
    assert "teacher_confidence" in (tmp_path / "runs" / "mine" / "log.csv").read_text().splitlines()[0]
    assert (tmp_path / "masks" / "val_0000.png").is_file()
    assert "finished already" in capsys.readouterr().err
    method = build_method(apply_overrides(Config(), [*TINY, "method.name=mean-teacher"]), 5)
    data = batch_of(method.views)
    assert {name: int(count) for name, count in method.counts(data).items()} == {
        name: int(term.count) for name, term in method(data, Progress(0, 1, 1)).terms.items()
    }


def test_every_name_that_the_guide_imports_is_public(followed):
    import allspark

    (names,) = re.findall(r"^from allspark import (.*)$", blocks("python")[0], re.MULTILINE)
    assert {name.strip() for name in names.split(",")} <= set(allspark.__all__)
