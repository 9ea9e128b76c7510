"""The only evaluator: validation during training and ``allspark eval`` both call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from allspark.data.decode import eval_items
from allspark.data.image import normalize
from allspark.data.source import Sample, Source
from allspark.errors import CheckpointError, DataError
from allspark.inference.boundary import BoundaryIoU
from allspark.inference.metrics import ConfusionMatrix, Scores
from allspark.inference.predictor import Predictor
from allspark.runtime.agreement import fail_together
from allspark.runtime.collectives import all_gather_object, rank, world_size

Group = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
"""Images (H, W, 3) with masks (H, W), all of one size."""


def evaluate(
    predictor: Predictor,
    samples: Sequence[Sample],
    source: Source,
    *,
    workers: int,
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
    on_bad: Callable[[DataError], None] | None = None,
    boundary: bool = False,
) -> Scores:
    """Predict whole images at their own size and compare with their masks.

    Consecutive images of equal size are computed together, up to ``eval.batch``; this does not change the result.
    Pixels are summed over all images before IoU is taken.

    Args:
        predictor: the model.
        samples: images with masks.
        source: their data set: classes and ignore value.
        workers: readers beside the computation; 0 reads in between.
        max_pixels: largest image that is decoded [pixels].
        progress: called with the number of images done and of all.
        on_bad: called with what is wrong with an image, which does not count then; None: the error is raised.
        boundary: also take the IoU of boundaries.

    Raises:
        DataError: there are no samples, an image or mask is missing or wrong, or no pixel has a class.
        CheckpointError: the model has another number of classes than the data set.
    """
    _check(predictor, samples, source)
    confusion = ConfusionMatrix(source.num_classes, predictor.device)
    edges = BoundaryIoU(source.num_classes, predictor.device) if boundary else None
    mine = samples[rank() :: world_size()]  # each image once, and no padding
    done = 0
    # closed at once when a prediction fails, so that no reader is left behind
    with (
        fail_together(),
        closing(eval_items(mine, source, workers=workers, max_pixels=max_pixels, on_bad=on_bad)) as items,
    ):
        for group in _groups(predictor, items):
            images = torch.from_numpy(np.stack([normalize(image, predictor.normalisation) for image, _ in group]))
            masks = torch.from_numpy(np.stack([mask for _, mask in group]))
            labels = predictor.labels(images)
            confusion.update(labels, masks)
            if edges is not None:
                edges.update(labels, masks)
            done += len(group)
            if progress is not None:
                progress(done, len(mine))
    confusion.add_up()
    if not sum(all_gather_object(done)):
        raise DataError(f"{source.root}: none of the {len(samples)} images to evaluate can be used")
    scores = confusion.scores()
    if edges is not None:
        edges.add_up()
        scores = replace(scores, boundary_iou=edges.iou())
    if np.isnan(scores.miou):
        raise DataError(
            f"all pixels of the {len(samples)} masks have the ignore value {source.ignore}: there is nothing to "
            f"evaluate; give masks with class ids 0..{source.num_classes - 1}"
        )
    return scores


def _check(predictor: Predictor, samples: Sequence[Sample], source: Source) -> None:
    if not samples:
        raise DataError(f"{source.root}: no image to evaluate: the split is empty, choose another or fill its list")
    without = [sample for sample in samples if sample.mask is None]
    if without:
        raise DataError(
            f"{without[0].image}: no mask, as for {len(without)} of {len(samples)} images to evaluate: "
            "add the masks or take the images out of the list"
        )
    classes = getattr(predictor.segmenter, "num_classes", source.num_classes)
    if classes != source.num_classes:
        raise CheckpointError(
            f"the model predicts {classes} classes, the data set {source.root} has {source.num_classes}: "
            "evaluate on data with the classes that it was trained on"
        )


def _groups(
    predictor: Predictor,
    items: Iterator[tuple[Sample, NDArray[np.uint8], NDArray[np.uint8]]],
) -> Iterator[Group]:
    group: Group = []
    limit = 1
    for _, image, mask in items:
        if group and image.shape != group[0][0].shape:
            yield group
            group = []
        if not group:
            limit = predictor.images_at_once(*mask.shape)
        group.append((image, mask))
        if len(group) == limit:
            yield group
            group = []
    if group:
        yield group
