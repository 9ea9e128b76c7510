"""Writes happen whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from allspark.files import atomic_path, atomic_write, lock_folder


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


def test_a_path_is_replaced_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(ValueError, match="mine"), atomic_path(path) as temporary:
        temporary.write_bytes(b"newer")
        raise ValueError("mine")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append("sync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("rename") or rename(*paths))
    with atomic_write(tmp_path / "x") as file:
        file.write(b"1")
    assert steps == ["sync", "rename", "sync"]  # the file, its name, the folder


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "x"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == tmp_path / "other" or caught.value.filename == str(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_stays_and_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory") as caught, atomic_write(tmp_path / "x") as file:
        file.write(b"1")
    assert str(tmp_path / "x") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").is_dir()


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    def write(digit):
        with atomic_write(tmp_path / "x") as file:
            for _ in range(20):
                file.write(digit * 500)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [b"%d" % (i % 10) for i in range(24)]))
    content = (tmp_path / "x").read_bytes()
    assert len(content) == 10_000 and len(set(content)) == 1 and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_untouched(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        lock_folder(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "content"
    (tmp_path / "run" / ".lock").unlink()
    lock_folder(tmp_path / "run").close()
