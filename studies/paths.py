"""mIoU of AllSpark runs through the path of training, through that of inference, and out of the memory.

    python studies/paths.py RUN...

In training a labelled image is reborn from the semantic memory (or from the unlabelled images of its batch), in
inference from its own channels or, with eval.memory, from the memory of the checkpoint. This scores the last checkpoint
in all ways on the centre crops of labelled training images and of validation images, four at a time. On the path of
training each four have four unlabelled images beside them, which are written to a copy of the memory. Nothing is
trained.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allspark.data.decode import read_sample
from allspark.data.image import normalize
from allspark.data.sets import open_source
from allspark.data.source import Sample, Source
from allspark.engine.run import Run, open_run
from allspark.inference.metrics import ConfusionMatrix
from allspark.models.allspark import Guide
from allspark.models.segmenter import Segmenter

AT_ONCE = 4


def centre(sample: Sample, source: Source, run: Run, want_mask: bool) -> tuple[Tensor, Tensor | None]:
    """The middle of an image, normalised (3, h, w), and of its mask (h, w)."""
    image, mask = read_sample(sample, source, want_mask=want_mask, max_pixels=run.config.data.max_pixels)
    pixels, crop = np.asarray(image), run.config.data.crop
    top, left = ((side - size) // 2 for side, size in zip(pixels.shape, crop, strict=False))
    window = np.s_[top : top + crop[0], left : left + crop[1]]
    cut = None if mask is None else torch.from_numpy(mask[window].copy())
    return torch.from_numpy(normalize(pixels[window], run.segmenter.normalisation)), cut


@torch.no_grad()
def scores(run: Run) -> dict[str, dict[str, float]]:
    """Of labelled and of validation images, mIoU from 0 to 1 by the name of the path."""
    network = run.segmenter
    assert isinstance(network, Segmenter)
    writing = copy.deepcopy(network)
    source = open_source(run.config.data)
    order = np.random.default_rng(0).permutation(len(source.unlabeled))
    paths = ("training", "inference", *(["memory"] if run.memory is not None else []))
    found = {}
    for name, samples in (("labelled", source.labeled), ("validation", source.val)):
        confusion = {path: ConfusionMatrix(source.num_classes) for path in paths}
        for start in range(0, len(samples) - AT_ONCE + 1, AT_ONCE):
            pairs = [centre(sample, source, run, True) for sample in samples[start : start + AT_ONCE]]
            images, masks = (torch.stack(parts) for parts in zip(*pairs, strict=True))
            beside = [source.unlabeled[int(i)] for i in np.take(order, range(start, start + AT_ONCE), mode="wrap")]
            unlabeled = torch.stack([centre(sample, source, run, False)[0] for sample in beside])
            guide = Guide(AT_ONCE, network(unlabeled), read_memory=True)
            logits = writing.logits(torch.cat([images, unlabeled]), guide)
            confusion["training"].update(logits.labels()[:AT_ONCE], masks)
            for path in paths[1:]:
                confusion[path].update(network.logits(images, from_memory=path == "memory").labels(), masks)
        found[name] = {path: matrix.scores().miou for path, matrix in confusion.items()}
    return found


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for name, found in scores(open_run(Path(folder), "last")).items():
            print(f"{folder}  {name:10}", *(f" {path} {100 * miou:.1f}" for path, miou in found.items()))
