"""Read every file of a data set and say everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allspark.data.check.files import Inspected, Rules, files_to_read
from allspark.data.check.findings import (
    Finding,
    duplicate_findings,
    file_findings,
    layout_findings,
    list_findings,
    name_findings,
    orphan_findings,
    size_findings,
    smaller_than,
    unread_findings,
)
from allspark.data.check.masks import class_findings, colour_findings, value_findings
from allspark.data.check.workers import read_all
from allspark.data.sets.classes import unnamed_classes
from allspark.data.source import RGB, Role, Source

__all__ = ["Finding", "Report", "check"]

_STATISTICS = (("min", np.min), ("median", np.median), ("max", np.max))


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        findings: errors first.
        classes: class names.
        named: whether these are the names of the data set; else it has none (yet), and they are its masks' values.
        palette: one colour a class.
        counts: images of each role (labeled, val, unlabeled).
        masks: masks of each role whose pixels were read.
        class_pixels: of each role with masks, pixels of each class, (k,).
        class_images: of each role with masks, images in which each class occurs, (k,).
        sizes: (m, 2), width and height of every image that could be read [pixels].
        crop: training crop, height and width [pixels]; None: not asked for.
    """

    findings: tuple[Finding, ...]
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    counts: Mapping[str, int]
    masks: Mapping[str, int]
    class_pixels: Mapping[str, NDArray[np.int64]]
    class_images: Mapping[str, NDArray[np.int64]]
    sizes: NDArray[np.int64]
    crop: tuple[int, int] | None = None
    named: bool = True

    @property
    def safe(self) -> bool:
        """Whether training would be safe."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def small(self) -> int:
        """How many images are smaller than the crop."""
        return smaller_than(((int(width), int(height)) for width, height in self.sizes), self.crop)

    def size_statistics(self) -> dict[str, tuple[int, int]]:
        """Smallest, median and largest width and height, each on its own [pixels]; empty where nothing was read."""
        if not len(self.sizes):
            return {}
        statistics = {name: function(self.sizes, axis=0) for name, function in _STATISTICS}
        return {name: (int(width), int(height)) for name, (width, height) in statistics.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the report, with all files, as plain JSON-able data."""
        return {
            "safe": self.safe,
            "findings": [_plain(finding) for finding in self.findings],
            "counts": dict(self.counts),
            "masks_read": dict(self.masks),
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "pixels": {role: int(pixels[index]) for role, pixels in self.class_pixels.items()},
                    "images": {role: int(images[index]) for role, images in self.class_images.items()},
                }
                for index, name in enumerate(self.classes)
            ],
            "sizes": {
                **{name: list(size) for name, size in self.size_statistics().items()},
                "crop": None if self.crop is None else [self.crop[1], self.crop[0]],
                "smaller_than_crop": None if self.crop is None else self.small,
            },
        }


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "kind": finding.kind,
        "summary": finding.summary,
        "fix": finding.fix,
        "details": list(finding.details),
        "files": list(finding.files),
        "paste": list(finding.paste),
    }


def check(
    source: Source,
    *,
    crop: tuple[int, int] | None,
    max_pixels: int,
    workers: int,
    fast: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a data set. What is wrong with it is in the report, never raised.

    Args:
        source: an open data set.
        crop: training crop, height and width, to count smaller images [pixels]; None: not counted.
        max_pixels: larger images are errors [pixels].
        workers: processes (fast: threads) that read; 0 and 1 read in this process.
        fast: as before training: headers only of up to 2,000 images a list, pixels of up to 200 labelled and 50
            validation masks, spread evenly over the lists; equal files and masks without an image are not looked for.
        progress: called with (images done, images in all).

    Returns:
        The report; it is the same for any number of workers.
    """
    jobs = files_to_read(source, fast=fast)
    rules = Rules(source.palette if source.rgb_masks else None, source.codes, source.ignore, max_pixels)
    inspected: list[Inspected] = []
    for some in read_all(jobs, rules, workers=workers, fast=fast):
        inspected += some
        if progress is not None:
            progress(len(inspected), len(jobs))
    inspected.sort(key=lambda item: item.index)
    masks: dict[Role, list[dict[int, int]]] = {"labeled": [], "val": []}
    for item in inspected:
        if item.counts is not None:
            masks[item.role].append(item.counts)
    return Report(
        findings=_judge(inspected, source, crop, fast),
        classes=source.classes,
        palette=source.palette,
        counts={"labeled": len(source.labeled), "val": len(source.val), "unlabeled": len(source.unlabeled)},
        masks={role: len(counts) for role, counts in masks.items()},
        class_pixels={role: _pixels(counts, source.num_classes) for role, counts in masks.items() if counts},
        class_images={role: _images(counts, source.num_classes) for role, counts in masks.items() if counts},
        sizes=np.array([item.size for item in inspected if item.size], np.int64).reshape(-1, 2),
        crop=crop,
        named=source.classes != unnamed_classes(),
    )


def _judge(
    inspected: Sequence[Inspected], source: Source, crop: tuple[int, int] | None, fast: bool
) -> tuple[Finding, ...]:
    findings = [
        *layout_findings(source),
        *list_findings(source),
        *file_findings(inspected),
        *size_findings(inspected, crop),
        *colour_findings(inspected, source),
        *name_findings(source),
    ]
    if not source.faults:  # else the classes are not known
        findings += [*value_findings(inspected, source), *class_findings(inspected, source)]
    if not fast:
        findings += [*duplicate_findings(inspected), *orphan_findings(source), *unread_findings(source)]
    return tuple(sorted(findings, key=lambda finding: finding.level != "error"))


def _pixels(masks: Sequence[Mapping[int, int]], classes: int) -> NDArray[np.int64]:
    return np.array([sum(counts.get(index, 0) for counts in masks) for index in range(classes)], np.int64)


def _images(masks: Sequence[Mapping[int, int]], classes: int) -> NDArray[np.int64]:
    return np.array([sum(index in counts for counts in masks) for index in range(classes)], np.int64)
