"""mIoU of AllSpark runs through the path of training, and through that of inference.

    python studies/paths.py RUN...

In training a labelled image is reborn from the semantic memory (or from the unlabelled images of its batch), in
inference from its own channels. This scores the last checkpoint both ways on the centre crops of the labelled training
images and of the validation images, four at a time, each with four unlabelled images beside it. Nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allspark.data.decode import read_sample
from allspark.data.image import normalize
from allspark.data.sets import open_source
from allspark.data.source import Sample, Source
from allspark.engine.run import open_run
from allspark.inference.metrics import ConfusionMatrix
from allspark.models.allspark import Guide

AT_ONCE = 4


def centre(sample: Sample, source: Source, crop: tuple[int, int], want_mask: bool) -> tuple[Tensor, Tensor | None]:
    """The middle of an image, normalised (3, h, w), and of its mask (h, w)."""
    image, mask = read_sample(sample, source, want_mask=want_mask, max_pixels=1 << 28)
    pixels = np.asarray(image)
    top, left = ((side - size) // 2 for side, size in zip(pixels.shape, crop, strict=False))
    window = np.s_[top : top + crop[0], left : left + crop[1]]
    cut = None if mask is None else torch.from_numpy(mask[window].copy())
    return torch.from_numpy(normalize(pixels[window])), cut


@torch.no_grad()
def scores(run_folder: Path) -> dict[str, tuple[float, float]]:
    """(training path, inference path), mIoU from 0 to 1, of labelled and validation images."""
    run = open_run(run_folder, "last")
    network, crop = run.segmenter, run.config.data.crop
    source = open_source(run.config.data)
    order = np.random.default_rng(0).permutation(len(source.unlabeled))
    found = {}
    for name, samples in (("labelled", source.labeled), ("validation", source.val)):
        guided, plain = (ConfusionMatrix(source.num_classes) for _ in range(2))
        for start in range(0, len(samples) - AT_ONCE + 1, AT_ONCE):
            pairs = [centre(sample, source, crop, True) for sample in samples[start : start + AT_ONCE]]
            images, masks = (torch.stack(parts) for parts in zip(*pairs, strict=True))
            beside = [source.unlabeled[int(i)] for i in np.take(order, range(start, start + AT_ONCE), mode="wrap")]
            unlabeled = torch.stack([centre(sample, source, crop, False)[0] for sample in beside])
            guide = Guide(AT_ONCE, network(unlabeled), read_memory=True)
            reborn = network.logits(torch.cat([images, unlabeled]), guide).full()[:AT_ONCE]
            guided.update(reborn.argmax(1), masks)
            plain.update(network(images).argmax(1), masks)
        found[name] = (guided.scores().miou, plain.scores().miou)
    return found


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for name, (training, inference) in scores(Path(folder)).items():
            print(f"{folder}  {name:10}  training path {100 * training:.1f}  inference path {100 * inference:.1f}")
