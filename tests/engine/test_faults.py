"""Every fault that was tried: what it is, how it is made, what the user sees, what is kept.

A row says it all; the test does it. ``trains`` is the exit status 0 of a run that goes on in spite of the fault.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allspark.batch import StepOutput, Term
from allspark.cli.app import main
from allspark.config.schema import Config
from allspark.data.image import write_mask
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from allspark.engine.run_folder import RunFolder
from allspark.methods import METHODS
from tests.conftest import TINY

PALETTE = [(0, 0, 0)] * 255


@dataclass
class Scene:
    """What a fault may touch: data, the run's folder, and the program."""

    data: Path
    out: Path
    patch: pytest.MonkeyPatch

    def image(self, kind: str) -> Path:
        return min((self.data / "images").glob(f"{kind}*"))

    def mask(self) -> Path:
        return min((self.data / "masks").glob("labeled*"))


Made = Callable[[Scene], "list[str] | None"]


@dataclass
class Fault:
    """A row: what happens, how it is made (it may return more options), what is said, and what is kept."""

    what: str
    made: Made
    said: str
    kept: str  # "nothing new": no run was begun; "checkpoint": the last one is whole; "trains": the run finishes


def jpeg(scene: Scene, keep: Callable[[bytes], bytes], quality: int = 95) -> None:
    old = scene.image("unlabeled")
    new = old.with_suffix(".jpg")
    Image.open(old).convert("RGB").save(new, quality=quality)
    old.unlink()
    new.write_bytes(keep(new.read_bytes()))


def zeros_in_the_middle(content: bytes) -> bytes:
    return content[: len(content) // 2] + content[len(content) // 2 :][:1]


def truncated(scene: Scene) -> None:
    jpeg(scene, lambda content: content[:-200])


def beheaded(scene: Scene) -> None:
    jpeg(scene, lambda content: b"\x00" * 64 + content[64:])


def halved(scene: Scene) -> None:
    jpeg(scene, zeros_in_the_middle)


def empty_file(scene: Scene) -> None:
    scene.image("unlabeled").write_bytes(b"")


def bomb(scene: Scene) -> list[str]:
    Image.new("1", (40_000, 40_000)).save(scene.image("unlabeled"))
    return []


def large(scene: Scene) -> list[str]:
    Image.new("RGB", (300, 300)).save(scene.image("unlabeled"))
    return ["data.max_pixels=80000"]


def other_size(scene: Scene) -> None:
    write_mask(scene.mask(), np.zeros((10, 10), np.uint8), PALETTE)


def wrong_value(scene: Scene) -> None:
    write_mask(scene.mask(), np.full((64, 80), 77, np.uint8), PALETTE)


def all_ignored(scene: Scene) -> list[str]:
    for path in (scene.data / "masks").glob("labeled*"):
        if path != scene.mask():
            write_mask(path, np.full((64, 80), 255, np.uint8), PALETTE)
    return ["data.batch_labeled=1"]


def never_occurs(scene: Scene) -> None:
    for path in (scene.data / "masks").glob("labeled*"):
        write_mask(path, np.zeros((64, 80), np.uint8), PALETTE)


def unlabelled_only(scene: Scene) -> None:
    for path in (scene.data / "masks").glob("labeled*"):
        path.unlink()


def one_label(scene: Scene) -> None:
    for path in (scene.data / "masks").glob("labeled*"):
        if path != scene.mask():
            path.unlink()


def not_a_number(scene: Scene) -> list[str]:
    forward = METHODS["allspark"].forward

    def breaks(self, batch, progress):
        output = forward(self, batch, progress)
        nan = Term(torch.tensor(float("nan"), requires_grad=True), torch.tensor(1))
        return StepOutput({"labeled": nan}, output.metrics) if progress.step == 2 else output

    scene.patch.setattr(METHODS["allspark"], "forward", breaks)
    return ["train.checkpoint_every=1"]


def worker_dies(scene: Scene) -> list[str]:
    from allspark.data import stream as loading

    read, parent = loading.read_sample, os.getpid()

    def dies(sample, *args, **kwargs):
        if os.getpid() != parent and sample.id == "unlabeled_0003":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(sample, *args, **kwargs)

    scene.patch.setattr(loading, "read_sample", dies)
    return ["data.workers=1", "train.epochs=10"]


def full_disk(scene: Scene) -> list[str]:
    """A real limit on the size of files, from the second checkpoint on."""
    from allspark.engine import run_folder as module

    save, count = module.save_checkpoint, [0]

    def limited(path, *args):
        count[0] += 1
        if count[0] == 1:
            return save(path, *args)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            return save(path, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, previous)

    scene.patch.setattr(module, "save_checkpoint", limited)
    return ["train.checkpoint_every=1"]


def read_only(scene: Scene) -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(scene.out))

    scene.patch.setattr("allspark.engine.run_folder.lock_folder", refuses)


def folder_vanishes(scene: Scene) -> list[str]:
    from allspark.engine.bar import Bar

    def and_gone(self, step):
        if step == 2:
            shutil.rmtree(scene.out)

    scene.patch.setattr(Bar, "advance", and_gone)
    return ["train.log_every=100", "train.epochs=1", "train.steps_per_epoch=4"]


def claimed(scene: Scene) -> None:
    """Another process that trains there; locks belong to processes."""
    scene.out.mkdir()
    if (child := os.fork()) == 0:
        with RunFolder(scene.out).claimed(Config()):
            signal.pause()
    while not (scene.out / "config.yaml").exists():
        pass
    scene.patch.setattr(scene, "child", child, raising=False)


def pickled(scene: Scene) -> list[str]:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("executed",))

    path = scene.data.parent / "weights.pth"
    path.write_bytes(pickle.dumps(Payload()))
    return ["model.encoder=mit-b0", "model.encoder_config={}", f"model.pretrained={path}"]


def pickled_run(scene: Scene) -> list[str]:
    path = checkpoint_path(scene.data.parent / "theirs", "last")
    path.parent.mkdir(parents=True)
    torch.save({"model": torch.zeros(1)}, path)
    return [f"train.begin_with={path}"]


def other_names(scene: Scene) -> None:
    """A name that is no UTF-8; lists cannot say it."""
    (scene.data / "train.txt").unlink()
    source = os.fsencode(scene.image("unlabeled"))
    os.rename(source, source.replace(b"unlabeled_0000", b"unlabeled_\xff\xfe"))


def loop(scene: Scene) -> None:
    (scene.data / "images" / "loop").symlink_to(scene.data / "images", target_is_directory=True)
    (scene.data / "images" / "itself.png").symlink_to("itself.png")
    (scene.data / "train.txt").unlink()


def pipe(scene: Scene) -> None:
    old = scene.image("unlabeled")
    old.unlink()
    os.mkfifo(old)


FAULTS = [
    Fault("JPEG without its head", beheaded, "unlabeled_0000.jpg: not an image", "nothing new"),
    Fault("JPEG that ends in the middle", halved, "unlabeled_0000.jpg: the image is damaged", "checkpoint"),
    Fault("JPEG without its tail", truncated, "unlabeled_0000.jpg: the image is damaged", "checkpoint"),
    Fault("zero-byte file", empty_file, "unlabeled_0000.png: the file is empty", "nothing new"),
    Fault("decompression bomb", bomb, "unlabeled_0000.png: .*pixels", "nothing new"),
    Fault("image over the limit", large, "unlabeled_0000.png: 300 x 300 pixels are more than", "nothing new"),
    Fault("mask of another size", other_size, "labeled_0000.png is 10x10, its image .* is 80x64", "nothing new"),
    Fault("mask value out of range", wrong_value, r"labeled_0000.png holds 77 \(100.00 %\)", "nothing new"),
    Fault("batches of ignored pixels only", all_ignored, "masks without a pixel of any class", "trains"),
    Fault("a class that never occurs", never_occurs, "5 of 6 classes in no labelled mask", "trains"),
    Fault("no labelled image", unlabelled_only, "no labelled image: looked for masks in", "nothing new"),
    Fault("one labelled image", one_label, "1 labelled, 9 unlabelled", "trains"),
    Fault("the loss is no number", not_a_number, r"the loss is nan in step 3 \(images labeled_", "checkpoint"),
    Fault("a reading process is killed", worker_dies, "a process that reads images died", "checkpoint"),
    Fault("the disk is full", full_disk, "could not be written .*the previous checkpoint is intact", "checkpoint"),
    Fault("a read-only file system", read_only, "Read-only file system", "nothing new"),
    Fault("the run's folder vanishes", folder_vanishes, "No such file or directory|result", "checkpoint"),
    Fault("another process trains there", claimed, "another process is training in this folder", "nothing new"),
    Fault("weights with a pickle payload", pickled, "weights.pth: refused", "nothing new"),
    Fault("a checkpoint that is a pickle", pickled_run, "not a checkpoint", "nothing new"),
    Fault("a name that is no UTF-8", other_names, "best mIoU", "trains"),
    Fault("a pipe among the images", pipe, "unlabeled_0000.png: a pipe or a device", "nothing new"),
    Fault("links that lead in circles", loop, "itself.png: .*symbolic link", "nothing new"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.what for fault in FAULTS])
def test_fault(fault, tiny_folder, tmp_path, monkeypatch, capfd):
    scene = Scene(Path(shutil.copytree(tiny_folder, tmp_path / "data")), tmp_path / "run", monkeypatch)
    changes = [*TINY, "data.on_bad_image=stop", *(fault.made(scene) or [])]
    options = [part for change in changes for part in ("--set", change)]
    try:
        status = main(["train", "--recipe", "folder", "--data", str(scene.data), "--out", str(scene.out), *options])
    finally:
        if child := getattr(scene, "child", None):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    captured = capfd.readouterr()
    text = captured.out + captured.err
    assert "Traceback" not in text and "executed" not in text
    if fault.kept == "trains":
        assert status == 0, text
        weights = load_checkpoint(checkpoint_path(scene.out, "last")).tensors["model.decoder.fuse.weight"]
        assert weights.isfinite().all()
    else:
        assert status == 2, text
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0] == captured.err.splitlines()[-1]
        text = errors[0]
    assert re.search(fault.said, text), text
    last = checkpoint_path(scene.out, "last")
    if fault.kept == "checkpoint":
        assert load_checkpoint(last).meta["state"]["step"] >= 0
    elif fault.kept == "nothing new":
        assert not last.exists()


CONFIGS = {
    "python tags": ("data: !!python/object/apply:os.system ['touch executed']\n", "tag"),
    "100 MB": ("# " + "x" * 100_000_000, "100,000,002 bytes are too many"),
    "anchors that grow": ("a: &a [x, x]\nb: &b [*a, *a]\n", "anchor|alias"),
    "no UTF-8": (b"\xff\xfe\x00data", "UTF-8"),
    "binary": (b"\x00\x01\x02", "not|YAML|character"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_are_refused(name, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = CONFIGS[name]
    path = tmp_path / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", "--config", str(path), "--data", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}") and re.search(said, line) and len(line) < 500
    assert not (tmp_path / "executed").exists()


def test_a_file_that_may_not_be_read_is_named(tiny_folder, tmp_path, capfd, monkeypatch):
    """(Made by hand, because the superuser may read everything.)"""
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    secret = data / "images" / "unlabeled_0001.png"
    plain = Image.open

    def refuses(path, *args):
        if Path(path) == secret:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *args)

    monkeypatch.setattr(Image, "open", refuses)
    options = [part for change in TINY for part in ("--set", change)]
    assert main(["train", "--recipe", "folder", "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 2
    assert f"{secret}: no permission to read it" in capfd.readouterr().err.splitlines()[-1]


def test_a_checkpoint_is_never_half_there(tmp_path, monkeypatch):
    """The rename is the last thing that happens: a process killed before it leaves the old file."""
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"model.w": torch.zeros(3)}, {"format": 1})
    before = path.read_bytes()
    if (child := os.fork()) == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        save_checkpoint(path, {"model.w": torch.ones(3)}, {"format": 1})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == before
