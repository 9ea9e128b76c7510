"""The demo as a user runs it, only shorter."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from allspark.cli.demo import METHODS, run_demo
from allspark.engine.sinks import read_log
from allspark.errors import ConfigError


@pytest.mark.slow
def test_demo_trains_compares_and_draws(tmp_path):
    console = Console(record=True, width=100)
    result = run_demo(tmp_path / "demo", steps=8, console=console)
    text = console.export_text()
    assert list(result.scores) == list(METHODS)
    for name in METHODS:
        assert name in text and f"{100 * result.scores[name].miou:.1f}" in text
        rows = read_log(tmp_path / "demo" / name)
        assert rows[-1]["step"] == 8 and rows[-1]["miou"] == result.scores[name].miou
    assert ("gained" in text) != ("did not pay" in text)
    page = np.asarray(Image.open(result.page).convert("L"))
    assert min(page.shape) > 800 and page.std() > 20
    overlays = list((tmp_path / "demo" / "overlays").glob("*.png"))
    assert len(overlays) == 4 * (1 + len(METHODS))

    again = run_demo(tmp_path / "demo", steps=8, console=Console(record=True))  # nothing is trained twice
    assert [s.miou for s in again.scores.values()] == [s.miou for s in result.scores.values()]
    with pytest.raises(ConfigError, match="cannot be resumed"):
        run_demo(tmp_path / "demo", steps=8, seed=1, console=Console(record=True))


def test_the_last_word_says_whether_unlabelled_images_paid():
    from types import SimpleNamespace

    from allspark.cli.demo import _verdict

    source = SimpleNamespace(labeled=range(8), unlabeled=range(160))
    won = _verdict(source, {"supervised": 0.5, "fixmatch": 0.49, "fixmatch+allspark": 0.524})
    assert won.startswith("160 images without a mask gained 2.4 points over the 8 masks alone (fixmatch+allspark)")
    lost = _verdict(source, {"supervised": 0.5, "fixmatch": 0.49, "fixmatch+allspark": 0.48})
    assert lost == "Unlabelled images did not pay here: the best of them is 1.0 points below the 8 masks alone."


@pytest.mark.slow
def test_the_recipe_learns(tmp_path):
    """A hundred updates of the demo's recipe are enough to tell ground, sky and crates apart."""
    from allspark.config.files import apply_overrides, load_recipe
    from allspark.engine.train import train

    config = apply_overrides(
        load_recipe("synthetic"),
        [f"data.root={tmp_path / 'scenes'}", "method.name=supervised", "train.epochs=1", "train.steps_per_epoch=100"],
    )
    result = train(config, tmp_path / "run")
    assert result.last is not None and result.last > 0.25  # one class everywhere gives less than 0.1
    losses = [row["loss"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0], json.dumps(losses)
