"""Bad input ends in one line on standard error and exit status 2, and leaves nothing half-written."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from allspark.cli.app import main
from allspark.engine.checkpoint import load_checkpoint, save_checkpoint
from allspark.recipes import RECIPES
from tests.cli.conftest import SET


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny data set that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "data"))


@pytest.fixture
def fails(capsys):
    """Call a command that must fail; returns its message."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        return one_line(captured.err)

    return call


def one_line(text: str) -> str:
    """The error line, and that it is one; remarks may come before it."""
    *_, last = text.splitlines()
    assert last.startswith("error: ")
    assert "Traceback" not in text
    assert sum(line.startswith("error: ") for line in text.splitlines()) == 1
    return last


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--recipie", "voc"], "--recipie"),
        (["train"], f"--recipe NAME ({', '.join(RECIPES)}) or --config FILE"),
        (["train", "--recipe", "vok"], "did you mean voc?"),
        (["train", "--recipe", "voc", "--config", "a.yaml"], "exclude each other"),
        (["train", "--config", "none.yaml"], "none.yaml: no such file"),
        (["train", "--recipe", "folder"], "--data"),
        (["train", "--recipe", "folder", "--data", "none"], "none: no such folder"),
        (["train", "--resume"], "--resume needs --out"),
        (["train", "--resume", "--out", "none"], "none/config.yaml: no such file"),
        (["train", "--recipe", "folder", "--set", "data.bacth_labeled=3"], "did you mean data.batch_labeled?"),
        (["train", "--recipe", "folder", "--set", "optim.lr=fast"], "optim.lr: expected a number, got fast"),
        (["train", "--recipe", "folder", "--set", "data.crop"], "expected KEY=VALUE"),
        (["eval", "none"], "none: not a run"),
        (["predict", "none", "a.png", "--out", "masks"], "none: not a run"),
        (["predict", "none"], "IMAGES"),
        (["check", "none"], "none: no such folder"),
        (["check", ".", "--source", "vok"], "data.source: no data set vok: did you mean voc?"),
        (["split", ".", "--source", "vok", "--labeled", "1/8"], "data.source: no data set vok: did you mean voc?"),
        (["check", "."], "images: no such folder"),
        (["split", ".", "--labeled", "1/8"], "images: no such folder"),
        (["split", "."], "--labeled"),
        (["config", "show", "vok"], "did you mean voc?"),
        (["import-checkpoint", "none.pth", "--classes", "21", "--out", "run"], "none.pth: no such file"),
        (["import-checkpoint", "none.pth", "--classes", "x", "--out", "run"], "--classes"),
    ],
)
def test_wrong_options(arguments, expected, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected.lower() in fails(*arguments).lower()
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_in_a_file(fails, tmp_path, tiny_folder):
    config = tmp_path / "my.yaml"
    config.write_text("data:\n  bacth_labeled: 3\n")
    message = fails("train", "--config", config, "--data", tiny_folder, "--out", tmp_path / "run")
    assert message == f"error: {config}: unknown key data.bacth_labeled: did you mean data.batch_labeled?"
    assert not (tmp_path / "run").exists()


def spoil_no_masks(root: Path) -> None:
    shutil.rmtree(root / "masks")


def spoil_empty_list(root: Path) -> None:
    (root / "val.txt").write_text("")


def spoil_list(root: Path) -> None:
    (root / "val.txt").write_text("nowhere\n")


def spoil_classes(root: Path) -> None:
    (root / "classes.txt").unlink()


def spoil_mask_values(root: Path) -> None:
    mask = next((root / "masks").iterdir())
    Image.open(mask).convert("L").point(lambda value: 255 * (value % 2) or 99).save(mask)


def spoil_mask_size(root: Path) -> None:
    mask = next((root / "masks").iterdir())
    with Image.open(mask) as picture:
        small = picture.crop((0, 0, 10, 10))
    small.save(mask)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_no_masks, "mask"),
        (spoil_empty_list, "val.txt"),
        (spoil_list, "nowhere"),
        (spoil_classes, "classes.txt"),
        (spoil_mask_values, "masks"),
        (spoil_mask_size, "masks"),
    ],
)
def test_wrong_data_stops_training_before_it_begins(spoil, expected, fails, folder, tmp_path):
    spoil(folder)
    out = tmp_path / "run"
    assert expected in fails("train", "--recipe", "folder", "--data", folder, "--out", out, *SET)
    assert not out.exists()


def test_empty_split_is_named(fails, folder, tmp_path):
    (folder / "splits" / "none").mkdir(parents=True)
    (folder / "splits" / "none" / "labeled.txt").write_text("\n")
    message = fails("train", "--recipe", "folder", "--data", folder, "--out", tmp_path / "run", *SET,
                    "--set", "data.split=none")  # fmt: skip
    assert "labeled.txt: the list is empty" in message
    message = fails("train", "--recipe", "folder", "--data", folder, "--out", tmp_path / "run", *SET,
                    "--set", "data.split=1_8")  # fmt: skip
    assert "1_8" in message


def test_corrupt_image_in_mid_training_is_named_and_the_checkpoint_is_intact(fails, folder, tmp_path):
    out = tmp_path / "run"
    train = ["train", "--recipe", "folder", "--data", folder, "--out", out, *SET]
    bad = min((folder / "images").glob("unlabeled*"))
    # Half of the picture is there: its head is right, so that only reading it whole finds out.
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    more = ["--set", "train.epochs=20", "--set", "train.checkpoint_every=1"]
    message = fails(*train, *more)
    assert bad.name in message
    if (out / "checkpoints").exists():
        load_checkpoint(out / "checkpoints" / "last.safetensors")
    shutil.rmtree(out, ignore_errors=True)
    assert main([str(x) for x in (*train, "--set", "data.on_bad_image=skip")]) == 0


def test_a_run_is_not_overwritten(fails, run, tiny_folder):
    before = (run / "checkpoints" / "last.safetensors").read_bytes()
    message = fails("train", "--recipe", "folder", "--data", tiny_folder, "--out", run, *SET)
    assert "--resume" in message
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == before


def test_resume_refuses_another_experiment_and_names_the_field(fails, run, tiny_folder):
    assert "optim.lr" in fails("train", "--out", run, "--resume", "--set", "optim.lr=0.5")
    message = fails("train", "--out", run, "--resume", "--recipe", "synthetic", "--data", tiny_folder)
    assert re.search(r"cannot be resumed with [a-z]+\.[a-z_]+ = ", message)


def test_evaluation_with_another_class_count_names_both(fails, run, folder):
    classes = folder / "classes.txt"
    lines = classes.read_text().splitlines()
    classes.write_text("\n".join([*lines, f"{len(lines)}\tmore\t1 2 3" if "\t" in lines[0] else "more"]) + "\n")
    message = fails("eval", run, "--data", folder)
    assert re.search(rf"\b{len(lines)}\b.*\b{len(lines) + 1}\b", message)


def test_a_memory_that_is_not_there_is_named(fails, tiny_folder, tmp_path):
    out, empty, plain = tmp_path / "run", tmp_path / "empty", tmp_path / "plain"
    train = ["train", "--recipe", "folder", "--data", tiny_folder, *SET, "--set", "train.epochs=0.5", "--out", out]
    memory, allspark = ["--set", "eval.memory=true"], ["--set", "method.name=allspark"]
    message = "error: eval.memory: the network has no semantic memory to predict from ({}); set it to false"
    without = "model.bottleneck_memory is false"
    assert fails(*train, *memory, "--set", "method.name=supervised") == message.format("there is no bottleneck")
    assert fails(*train, *memory, *allspark, "--set", "model.bottleneck_memory=false") == message.format(without)
    assert main([str(x) for x in (*train[:-1], plain, "--set", "method.name=supervised")]) == 0
    assert fails("eval", plain, "--memory") == message.format("there is no bottleneck")
    assert fails("predict", plain, tiny_folder, "--memory", "--out", out) == message.format("there is no bottleneck")
    assert not out.exists()

    assert main([str(x) for x in (*train, *allspark)]) == 0
    saved = load_checkpoint(out / "checkpoints" / "last.safetensors")
    saved.tensors["model.bottleneck.memory.written"].zero_()
    save_checkpoint(empty / "checkpoints" / "last.safetensors", saved.tensors, saved.meta)
    assert "nothing was ever written" in fails("eval", empty, "--memory")


def test_a_bottleneck_that_does_not_fit_is_told_before_training(fails, tiny_folder, tmp_path):
    out = tmp_path / "run"
    train = ["train", "--recipe", "folder", "--data", tiny_folder, "--out", out, *SET, "--set", "method.name=allspark"]
    assert "a crop of 32 x 32 pixels is one position" in fails(*train, "--set", "data.crop=32")
    huge = fails(*train, "--set", "model.encoder_config.hidden_sizes=[8, 16, 16, 512]", "--set", "data.crop=30000")
    assert re.search(
        r"512 channels on a grid of 938 x 938, with \d classes, need \d+\.\d GB at least, and cpu has", huge
    )
    assert not out.exists()


def test_damaged_and_foreign_checkpoints_are_named(fails, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert "safetensors: truncated" in fails("eval", copy)
    assert "safetensors: truncated" in fails("train", "--out", copy, "--resume")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    message = fails("import-checkpoint", tmp_path / "other.pth", "--classes", 21, "--out", tmp_path / "new")
    assert "other.pth" in message
    assert not (tmp_path / "new").exists()


def test_predict_names_what_cannot_be_read(fails, run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert "a.png" in fails("predict", run, tmp_path / "a.png", "--out", tmp_path / "masks")
    assert "none.png" in fails("predict", run, tmp_path / "none.png", "--out", tmp_path / "masks")
    assert "a.png" in fails("predict", run, tmp_path / "a.png", "--out", tmp_path)


def start(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program for real, with files of at most ``limit`` bytes."""

    def restrict() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "allspark.cli.app", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=restrict,
    )


@pytest.mark.slow
def test_full_disk_leaves_nothing_half_written(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last = copy / "checkpoints" / "last.safetensors"
    image = next(Path(load_checkpoint(last).meta["config"]["data"]["root"], "images").iterdir())
    done = start("predict", copy, image, "--out", tmp_path / "masks", limit=10)
    assert done.returncode == 2
    assert "masks" in one_line(done.stderr)
    assert list((tmp_path / "masks").iterdir()) == []

    out = tmp_path / "full"
    done = start("train", "--config", copy / "config.yaml", "--out", out, limit=last.stat().st_size // 2)
    assert done.returncode == 2
    assert "safetensors" in one_line(done.stderr)
    assert not (out / "checkpoints" / "last.safetensors").exists()
    for whole in out.rglob("*.safetensors"):
        load_checkpoint(whole)  # raises if it is not
    assert not list(out.rglob("*.tmp"))


def test_output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_not():
    command = f"{sys.executable} -m allspark.cli.app config show voc"
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, timeout=60)
    assert full.returncode != 0
    assert "Traceback" not in full.stderr
    closed = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, timeout=60)
    assert closed.stderr == ""


def test_a_folder_or_file_of_something_else_is_not_written_into(fails, tiny_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, words in ((photos, "holds other files (holiday.jpg"), (tmp_path / "file", "a file, but a folder")):
        assert words in fails("train", "--recipe", "folder", "--data", tiny_folder, "--out", out, *SET)
        assert words in fails("demo", "--out", out, "--steps", "4")
    assert [path.name for path in photos.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("labeled", ["1e-3", "1e400", "nan", "-1", "1/0", "", "0.5.1"])
def test_odd_numbers_of_labels_are_one_short_line(fails, tiny_folder, labeled):
    assert "expected a fraction such as 1/8, or a number of images" in fails(
        "split", tiny_folder, f"--labeled={labeled}", "--name", "x"
    )


def test_true_is_no_number(fails, tiny_folder, tmp_path):
    for field in ("data.batch_labeled", "seed", "data.workers"):
        message = fails("train", "--recipe", "folder", "--data", tiny_folder, "--out", tmp_path / "run", "--set",
                        f"{field}=true")  # fmt: skip
        assert f"{field}: expected a whole number, got true" in message


def test_ctrl_c_outside_training_is_one_line(monkeypatch, tiny_folder, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("allspark.data.check.read_all", interrupted)
    assert main(["check", str(tiny_folder)]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
