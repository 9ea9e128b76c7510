"""The whole job on generated scenes: with and without unlabelled images, the same few labels, one page of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from allspark.config.files import apply_overrides, load_recipe
from allspark.config.schema import Config
from allspark.data.image import overlay, read_image, read_mask
from allspark.data.sets import open_source
from allspark.data.source import Source
from allspark.engine.bar import Bar
from allspark.engine.run import open_run
from allspark.engine.run_folder import require_own
from allspark.engine.sinks import read_log
from allspark.engine.train import train
from allspark.figures.comparison import Example, MethodResult, one_page, save_figure
from allspark.files import atomic_path
from allspark.inference.evaluate import evaluate
from allspark.inference.metrics import Scores
from allspark.inference.predictor import Predictor

BASELINE = "supervised"
METHODS: dict[str, list[str]] = {
    # an average of the weights, as a teacher is one: so the rest is what the unlabelled images give
    BASELINE: ["method.name=supervised", "method.ema_decay=0.98"],
    "fixmatch": [],
    "fixmatch+allspark": ["model.bottleneck=allspark", "model.bottleneck_gate=true"],
}
"""Name -> changes of the recipe ``synthetic``."""
_EXAMPLES = 4


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured."""

    scores: Mapping[str, Scores]
    seconds: Mapping[str, float]
    page: Path


def run_demo(out: Path, *, seed: int = 0, steps: int | None = None, console: Console | None = None) -> DemoResult:
    """Generate scenes, train and evaluate each of ``METHODS``, draw and print what was measured.

    All methods start from the same encoder and decoder, see the same labelled crops, and make the same number of
    updates; the last checkpoint counts. Finished or interrupted methods in ``out`` are not trained again but taken up
    where they stand.

    Args:
        out: folder of data, runs, overlays and demo.png.
        seed: of weights and sampling (the scenes are always the same).
        steps: weight updates a method; None: as the recipe `synthetic` says.
        console: where the table goes; None: standard output.

    Raises:
        UserError: ``out`` holds runs with other settings.
    """
    console = console or Console()
    require_own(out, ("data", *METHODS))
    configs = {name: _config(out, name, seed, steps) for name in METHODS}
    runs, predictions, seconds = {}, {}, {}
    for name, config in configs.items():
        bar = Bar(Console(stderr=True), name)
        train(config, out / name, resume=True, sinks=[bar])  # begins where nothing is there yet
        seconds[name] = max(row["seconds"] for row in read_log(out / name) if "seconds" in row)
    source = open_source(configs[BASELINE].data)
    for name, config in configs.items():
        predictions[name] = open_run(out / name, "last").predictor()
        runs[name] = evaluate(predictions[name], source.val, source, workers=0, max_pixels=config.data.max_pixels)
    examples = _examples(source, predictions, out / "overlays")
    results = [MethodResult(name, read_log(out / name), runs[name].iou, runs[name].miou) for name in METHODS]
    total = read_log(out / BASELINE)[-1]["step"]
    what = f"{len(source.labeled)} labelled and {len(source.unlabeled)} unlabelled generated scenes"
    title = f"{what}, {total} updates, seed {seed}"
    save_figure(one_page(title, results, examples, source.classes, source.palette), out / "demo.png")
    console.print(_table(title, runs, seconds, source))
    console.print(
        f"{_verdict(source, {name: scores.miou for name, scores in runs.items()})}\n"
        f"Picture: {out / 'demo.png'}   overlays: {out / 'overlays'}   runs: {out}/{{{','.join(METHODS)}}}",
        highlight=False,
        soft_wrap=True,
    )
    return DemoResult(runs, seconds, out / "demo.png")


def _config(out: Path, method: str, seed: int, steps: int | None) -> Config:
    changes = [*METHODS[method], f"seed={seed}"]
    if steps is not None:
        changes += ["train.epochs=4", f"train.steps_per_epoch={max(1, steps // 4)}"]
    config = apply_overrides(load_recipe("synthetic"), changes)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": out / "data"})})


def _verdict(source: Source, miou: Mapping[str, float]) -> str:
    """One line: did the unlabelled images pay?"""
    best = max((name for name in miou if name != BASELINE), key=lambda name: miou[name])
    gain = 100 * (miou[best] - miou[BASELINE])
    with_masks = f"the {len(source.labeled)} masks alone"
    if gain <= 0:
        return f"Unlabelled images did not pay here: the best of them is {-gain:.1f} points below {with_masks}."
    return (
        f"{len(source.unlabeled)} images without a mask gained {gain:.1f} points over {with_masks} ({best}). "
        "Real images: docs/results.md."
    )


def _examples(source: Source, predictors: Mapping[str, Predictor], folder: Path) -> list[Example]:
    """Predict some validation images with all methods, and keep their overlays."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for sample in source.val[:_EXAMPLES]:
        assert sample.mask is not None
        image, truth = read_image(sample.image), read_mask(sample.mask)
        masks = {name: predictor.predict(image).mask for name, predictor in predictors.items()}
        for name, mask in {"truth": truth, **masks}.items():
            with atomic_path(folder / f"{sample.id}_{name}.png") as temporary:
                overlay(image, mask, source.palette).save(temporary, "png")
        examples.append(Example(image, truth, masks))
    return examples


def _table(title: str, runs: Mapping[str, Scores], seconds: Mapping[str, float], source: Source) -> Table:
    table = Table(title=title, title_style="bold", header_style="bold")
    table.add_column("%")
    for name in runs:
        table.add_column(name, justify="right")
    table.add_row("mIoU", *(f"{100 * scores.miou:.1f}" for scores in runs.values()), style="bold")
    table.add_row("pixel accuracy", *(f"{100 * scores.pixel_accuracy:.1f}" for scores in runs.values()))
    for k, name in enumerate(source.classes):
        values = [scores.iou[k] for scores in runs.values()]
        table.add_row(f"IoU {name}", *("-" if np.isnan(v) else f"{100 * v:.1f}" for v in values))
    table.add_row("training, seconds", *(f"{seconds[name]:.0f}" for name in runs))
    return table
