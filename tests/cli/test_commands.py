"""The commands, from images to masks, on a tiny network."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allspark.cli.app import main
from allspark.cli.train import chosen
from allspark.config.files import load_config
from allspark.config.schema import Config
from allspark.engine.result import read_result
from allspark.engine.sinks import read_log
from allspark.recipes import RECIPES
from tests.cli.conftest import SET


def succeed(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_train_writes_config_log_and_checkpoints(run, tiny_folder):
    config = load_config(run / "config.yaml")
    assert config.data.root == tiny_folder
    assert config.data.crop == (64, 64)
    assert [row["step"] for row in read_log(run) if "loss" in row] == [1, 2, 3, 4]
    assert any("miou" in row for row in read_log(run))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.safetensors", "best.safetensors"}


def test_train_prints_its_result_on_stdout_and_progress_on_stderr(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    succeed("train", "--recipe", "folder", "--data", tiny_folder, "--out", out, *SET, "--set", "method.name=supervised")
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{out}: 4 steps; best mIoU ")
    assert len(captured.out.splitlines()) == 1
    assert "img/s" in captured.err


def test_labeled_list_is_used_from_any_folder(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    masks = sorted(path.stem for path in (tiny_folder / "masks").iterdir())
    val = set((tiny_folder / "val.txt").read_text().split())
    Path("few.txt").write_text(f"{next(name for name in masks if name not in val)}\n")
    succeed("train", "--recipe", "folder", "--data", tiny_folder, "--labeled", "few.txt", *SET)
    assert load_config(Path("runs/folder/config.yaml")).data.labeled == tmp_path / "few.txt"
    assert "1 labelled" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_run_resumes_with_the_same_losses(run, tmp_path):
    """Ctrl-C while it trains: status 130, a checkpoint, and then the losses of the unbroken run."""
    data = load_config(run / "config.yaml").data.root
    out = tmp_path / "run"
    settings = [*SET, "--set", "train.epochs=20"]
    whole = tmp_path / "whole"
    succeed("train", "--recipe", "folder", "--data", data, "--out", whole, *settings)

    command = ["train", "--recipe", "folder", "--data", str(data), "--out", str(out), *settings]
    process = subprocess.Popen([sys.executable, "-m", "allspark.cli.app", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not any("loss" in row for row in read_log(out)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    stopped = max(row["step"] for row in read_log(out))
    assert 0 < stopped < 40

    succeed("train", "--out", out, "--resume")
    losses = [[(row["step"], row["loss"]) for row in read_log(path) if "loss" in row] for path in (whole, out)]
    assert len(losses[0]) == 40
    assert losses[0] == losses[1]


def test_eval_prints_json_only_and_equals_the_log(run, capsys):
    succeed("eval", run, "--json", "--checkpoint", "last")
    scores = json.loads(capsys.readouterr().out)
    logged = [row for row in read_log(run) if "miou" in row][-1]
    assert scores["images"] == 3
    assert scores["miou"] == pytest.approx(logged["miou"], abs=1e-12)
    deployed = read_result(run)["network"]
    succeed("eval", run, "--json", "--network", deployed)
    again = json.loads(capsys.readouterr().out)
    assert again == scores | {"network": deployed}  # of the last checkpoint, which holds all networks
    assert main(["eval", str(run), "--network", "mine"]) == 2
    assert "has no network 'mine'; there are" in capsys.readouterr().err
    assert scores["pixel_accuracy"] == pytest.approx(logged["pixel_accuracy"], abs=1e-12)
    assert scores["iou"] == pytest.approx(logged["iou"])


def test_eval_prints_a_table(run, capsys):
    succeed("eval", run, "--json")
    scores = json.loads(capsys.readouterr().out)
    succeed("eval", run)
    text = capsys.readouterr().out
    for name in scores["iou"]:
        assert name in text
    assert f"mIoU {100 * scores['miou']:.2f} %" in text


def test_eval_modes_splits_and_other_data(run, tiny_folder, tmp_path, capsys):
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    results = {}
    for name, options in {
        "whole": [],
        "moved": ["--data", moved],
        "train": ["--split", "train"],
        "window": ["--mode", "window"],
        "bf16": ["--precision", "bf16"],
        "fp64": ["--precision", "fp64"],
    }.items():
        succeed("eval", run, "--json", *options)
        results[name] = json.loads(capsys.readouterr().out)
    assert results["moved"]["miou"] == results["whole"]["miou"]
    # A window that holds the whole image gives the whole image's result.
    assert results["window"]["miou"] == pytest.approx(results["whole"]["miou"], abs=1e-6)
    assert results["fp64"]["miou"] == pytest.approx(results["whole"]["miou"], abs=1e-3)
    assert results["bf16"]["miou"] == pytest.approx(results["whole"]["miou"], abs=0.03)
    assert main(["eval", str(run), "--precision", "fp16"]) == 2
    assert "precision fp16 needs a GPU: use --precision fp32 or bf16" in capsys.readouterr().err
    assert results["train"]["images"] == 4


@pytest.mark.parametrize("method", ["allspark", "fixmatch"])
def test_eval_and_predict_from_the_memory(method, tiny_folder, tmp_path, capsys):
    """A run whose setting it is validates so, and its commands do so by themselves; a teacher has a copy of it."""
    out, masks = tmp_path / "run", tmp_path / "masks"
    changes = [f"method.name={method}", "model.bottleneck=allspark", "eval.memory=true"]
    changes += ["method.supervised_epochs=0"] if method == "fixmatch" else []
    settings = [part for change in changes for part in ("--set", change)]
    succeed("train", "--recipe", "folder", "--data", tiny_folder, "--out", out, *SET, *settings)
    logged = [row for row in read_log(out) if "miou" in row][-1]
    for option in ("--memory", "--no-memory", None):
        capsys.readouterr()
        succeed("eval", out, "--json", "--checkpoint", "last", *([option] if option else []))
        captured = capsys.readouterr()
        recalled = option != "--no-memory"
        assert (json.loads(captured.out)["iou"] == pytest.approx(logged["iou"], abs=1e-12)) == recalled
        assert ("note: the memory of " in captured.err) == recalled  # four steps do not fill it
    succeed("predict", out, next((tiny_folder / "images").glob("val_*")), "--out", masks, "--memory")
    assert len(list(masks.iterdir())) == 1
    labels = {}
    for option in ("--memory", "--no-memory"):
        succeed("label", out, "--out", tmp_path / option[2:], option, "--checkpoint", "last")
        labels[option] = [path.read_bytes() for path in sorted((tmp_path / option[2:]).rglob("*.png"))]
    assert len(labels["--memory"]) == 6 and labels["--memory"] != labels["--no-memory"]


def test_eval_takes_any_list(run, tiny_folder, tmp_path, capsys):
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    (moved / "test.txt").write_text("val_0001\n")
    (tmp_path / "mine.txt").write_text("labeled_0000\nval_0001\n")
    for split, images in (("test", 1), (tmp_path / "mine.txt", 2)):
        succeed("eval", run, "--json", "--data", moved, "--split", split)
        assert json.loads(capsys.readouterr().out)["images"] == images
    assert main(["eval", str(run), "--split", "tset"]) == 2
    assert "--split tset: expected val, train, a list file, or the name of one" in capsys.readouterr().err


def test_eval_of_another_folder_without_val_txt_scores_every_mask(run, tiny_folder, tmp_path, capsys):
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    for name in ("val.txt", "train.txt"):
        (moved / name).unlink()
    succeed("eval", run, "--json", "--data", moved)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == len(list((moved / "masks").iterdir())) == 7
    assert "all 7 images with a mask are scored" in captured.err
    succeed("eval", run, "--json", "--data", moved, "--source", "folder", "--split", "train")
    assert json.loads(capsys.readouterr().out)["images"] == 6  # of 7, one is held out for validation
    assert main(["eval", str(run), "--source", "folder"]) == 2
    assert "--source belongs to --data" in capsys.readouterr().err


def test_eval_names_the_checkpoint_that_it_read(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "best.safetensors").unlink()
    for folder, name in ((run, "best"), (copy, "last")):
        succeed("eval", folder, "--json")
        assert json.loads(capsys.readouterr().out)["checkpoint"] == name


def test_predict_writes_masks_overlays_and_scores(run, tiny_folder, tmp_path, capsys):
    odd = tmp_path / "in" / "odd.jpg"
    odd.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 91), dtype=np.uint8)).save(odd)
    out = tmp_path / "masks"
    succeed("predict", run, tiny_folder / "images", odd, "--out", out, "--overlay", "--scores")
    names = {path.stem for path in (tiny_folder / "images").iterdir()} | {"odd"}
    for folder in (out, tmp_path / "masks-overlays", tmp_path / "masks-scores"):
        assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in names}
    with Image.open(out / "odd.png") as mask:
        assert (mask.mode, mask.size) == ("P", (91, 37))
    assert capsys.readouterr().out.startswith(f"{len(names)} masks in ")


def test_check_says_whether_training_is_safe(tiny_folder, tmp_path, capsys):
    succeed("check", tiny_folder, "--workers", 0)
    assert capsys.readouterr().out.strip()
    succeed("check", tiny_folder, "--json", "--workers", 0, "--crop", 64)
    assert json.loads(capsys.readouterr().out)["safe"] is True

    bad = shutil.copytree(tiny_folder, tmp_path / "bad")
    first = min((bad / "images").iterdir())
    first.write_bytes(b"")
    mask = sorted((bad / "masks").iterdir())[1]
    Image.fromarray(np.full((64, 80), 200, np.uint8)).save(mask)
    assert main(["check", str(bad), "--json", "--workers", "0"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["safe"] is False
    text = json.dumps(report)
    assert first.name in text
    assert mask.name in text
    assert main(["check", str(bad), "--workers", "0"]) == 1
    assert "200" in capsys.readouterr().out


def test_split_makes_lists_that_train_uses(tiny_folder, tmp_path, capsys):
    root = shutil.copytree(tiny_folder, tmp_path / "data")
    succeed("split", root, "--labeled", "2", "--seed", 3, "--name", "two")
    text = capsys.readouterr().out
    assert "2 labelled" in text
    assert "data.split=two" in text
    lists = {path.name: path.read_text() for path in (root / "splits" / "two").iterdir()}
    shutil.rmtree(root / "splits")
    succeed("split", root, "--labeled", "2", "--seed", 3, "--name", "two", "--stratified")
    succeed("split", root, "--labeled", "2", "--seed", 3, "--name", "again")
    assert {path.name: path.read_text() for path in (root / "splits" / "again").iterdir()} == lists
    capsys.readouterr()
    out = tmp_path / "run"
    succeed("train", "--recipe", "folder", "--data", root, "--out", out, *SET, "--set", "data.split=again")
    assert "2 labelled" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_config_show_is_a_complete_file_that_loads(name, tmp_path, capsys):
    succeed("config", "show", name)
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config(RECIPES[name])
    assert f"allspark train --recipe {name}" in path.read_text()
    assert path.read_text().count("# ") > len(Config.model_fields)


def test_config_list_names_all_recipes(capsys):
    succeed("config", "list")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


def test_published_checkpoint_becomes_a_run(tmp_path, tiny_folder, capsys):
    """Golden weights of the published code: import, open, and the same logits."""
    import torch

    from allspark.engine.run import open_run

    golden = Path(__file__).parents[1] / "golden" / "train_steps.npz"
    with np.load(golden) as arrays:
        state = {key[6:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("final.")}
        image, logits = torch.from_numpy(arrays["eval.image"]), torch.from_numpy(arrays["eval.logits"])
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "published.pth")
    run = tmp_path / "run"
    succeed("import-checkpoint", tmp_path / "published.pth", "--classes", 5, "--out", run)
    opened = open_run(run)
    with torch.no_grad():
        torch.testing.assert_close(opened.segmenter.double()(image.double()), logits, rtol=1e-4, atol=1e-5)
    succeed("predict", run, tiny_folder / "images", "--out", tmp_path / "masks")
    assert main(["import-checkpoint", str(tmp_path / "published.pth"), "--classes", "21", "--out", str(run)]) == 2
    assert "exists" in capsys.readouterr().err
    wrong = ["import-checkpoint", str(tmp_path / "published.pth"), "--classes", "21", "--out", str(tmp_path / "other")]
    assert main(wrong) == 2
    assert "has 5 classes, not 21" in capsys.readouterr().err
    assert main(["eval", str(run)]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "gpu", "changes", "encoder"),
    [
        ("folder", False, [], "efficientnet-lite0"),
        ("folder", True, [], "facebook/dinov2-small"),
        ("folder", True, ["train.device = cpu"], "efficientnet-lite0"),
        ("folder", True, ["model.encoder=mit-b0"], "mit-b0"),
        ("voc", True, [], "mit-b5"),
    ],
)
def test_the_folder_recipe_takes_a_larger_network_on_a_gpu(recipe, gpu, changes, encoder, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    config, out = chosen(recipe, None, None, resume=False, changes=changes, paths={})
    assert config.model.encoder == encoder
    assert out == Path("runs") / recipe
    assert ("dinov2-small is used" in capsys.readouterr().err) == (encoder == "facebook/dinov2-small")
