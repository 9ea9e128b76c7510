"""Writes happen whole or not at all."""

import os

import pytest

from allspark.files import atomic_path, atomic_write


def test_a_file_appears_with_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "ä.txt", "w") as file:
        file.write("grün")
        assert not (tmp_path / "ä.txt").exists()
    assert (tmp_path / "ä.txt").read_text("utf-8") == "grün"
    plain = tmp_path / "plain"
    plain.touch()
    assert os.stat(plain).st_mode == os.stat(tmp_path / "ä.txt").st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "ä.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_debris(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(tmp_path / "x") as file:
        file.write(b"half of the new")
        raise error
    assert (tmp_path / "x").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x") and list(tmp_path.iterdir()) == []
