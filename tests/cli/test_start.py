"""Help and version: fast, and without heavy imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from rich.text import Text

import allspark
from allspark.cli.app import app, main

COMMANDS = [
    "demo",
    "check",
    "split",
    "train",
    "eval",
    "predict",
    "plot",
    "study",
    "import-checkpoint",
    "config",
    "prepare",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)


def test_help_imports_what_prints_it_alone():
    """Help comes at once (some 0.2 s) as long as nothing heavy is loaded for it."""
    words = "import sys; from allspark.cli.app import main; main(['--help']); print('loaded', *sys.modules)"
    loaded = run("-c", words).stdout.rpartition("loaded ")[2].split()
    heavy = {"torch", "transformers", "numpy", "PIL", "pydantic", "omegaconf", "yaml", "matplotlib", "scipy", "tqdm"}
    assert heavy & {module.partition(".")[0] for module in loaded} == set()
    assert len(loaded) < 450


@pytest.mark.parametrize("module", ["allspark", "allspark.cli.app", "allspark.config.files", "allspark.cli.use"])
def test_torch_is_not_imported_with(module):
    loaded = run("-c", f"import sys, {module}; print(*(m for m in ('torch', 'transformers') if m in sys.modules))")
    assert loaded.stdout.strip() == ""


def test_check_and_split_start_without_torch():
    modules = "allspark.data, allspark.data.check, allspark.data.splits, allspark.data.sets.synthetic"
    loaded = run("-c", f"import sys, {modules}; print('torch' in sys.modules)")
    assert loaded.stdout.strip() == "False"


def test_help_lists_all_commands(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"allspark {command}" in capsys.readouterr().out


def test_no_part_of_a_help_text_is_taken_for_markup():
    """Rich would swallow what stands in square brackets, a unit or a default."""

    def walk(command):
        yield command.help
        for parameter in command.params:
            yield getattr(parameter, "help", None)
        for part in getattr(command, "commands", {}).values():
            yield from walk(part)

    texts = [text for text in walk(typer.main.get_command(app)) if text]
    assert len(texts) > 50
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


def test_the_demo_needs_no_typer_to_be_imported():
    loaded = run("-c", "import sys, allspark.cli.demo; print('typer' in sys.modules)")
    assert loaded.stdout.strip() == "False"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"allspark {allspark.__version__}\n"


def test_public_names_exist_and_others_do_not():
    assert sorted(allspark.__all__) == sorted({name for names in allspark._HOME.values() for name in names})
    for name in allspark.__all__:
        assert getattr(allspark, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = allspark.nothing
