"""Names that others chose do nothing to a terminal."""

import os

import pytest
from PIL import Image

from allspark.cli.app import main
from allspark.engine.sinks import Sinks
from allspark.errors import DataError, printable
from tests.helpers import Lines

EVIL = "a\x1b]0;title\x07\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("süß 日本 🙂", "süß 日本 🙂"),
        (EVIL, r"a\x1b]0;title\x07\x1b[2J"),
        ("a\u202eb", r"a\u202eb"),
        ("\x9b1m", r"\x9b1m"),
        ("a\nb\tc", r"a\nb\tc"),
        (os.fsdecode(b"\xff"), r"\udcff"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


def test_errors_and_notes_are_printable():
    assert "\x1b" not in str(DataError(EVIL))
    sink = Lines()
    Sinks([sink]).note(EVIL)
    assert sink.lines == [printable(EVIL)]


def test_check_shows_names_of_files_as_they_cannot_harm(tmp_path, capfd):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "fine.png")
    (tmp_path / "images" / f"{EVIL}.png").write_bytes(b"no image")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert main(["check", str(tmp_path), "--workers", "0"]) == 1
    said = "".join(capfd.readouterr())
    assert r"a\x1b]0;title" in said and "\x1b" not in said and "\x07" not in said


def test_a_class_of_such_a_name_is_refused(tmp_path, capfd):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "fine.png")
    (tmp_path / "classes.txt").write_text(f"{EVIL}\nb\n")
    assert main(["check", str(tmp_path), "--workers", "0"]) == 1
    said = "".join(capfd.readouterr())
    assert "holds a character that cannot be shown" in said and "\x1b" not in said
