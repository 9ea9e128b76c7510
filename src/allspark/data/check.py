"""Look at every file of a data set and say everything that is wrong at once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allspark.data.image import read_image, read_mask
from allspark.data.layout import find_files
from allspark.data.source import Sample, Source
from allspark.errors import DataError
from allspark.types import IGNORE

_FAST_IMAGES, _FAST_MASKS = 2000, 200  # looked at before training starts
_QUARTER_TURNS = {5, 6, 7, 8}  # values of the EXIF orientation that swap width and height


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        level: an error makes training unsafe; a warning is worth knowing.
        kind: a short name that does not change.
        summary: what is wrong and how to fix it.
        details: one line for each file concerned.
    """

    level: Literal["error", "warning"]
    kind: str
    summary: str
    details: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The summary with the first detail, on one line."""
        return f"{self.summary}: {self.details[0]}" if self.details else self.summary


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        findings: errors first.
        counts: images of each role (labeled, unlabeled, val).
        class_pixels: of each role with masks, pixels of each class, (k,).
        class_images: of each role with masks, images in which each class occurs, (k,).
        sizes: (m, 2), width and height of every image that could be read [pixels].
    """

    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    class_pixels: Mapping[str, NDArray[np.int64]]
    class_images: Mapping[str, NDArray[np.int64]]
    sizes: NDArray[np.int64]

    @property
    def safe(self) -> bool:
        """Whether training would be safe."""
        return all(finding.level != "error" for finding in self.findings)

    def as_dict(self, source: Source) -> dict[str, Any]:
        """Return the report as plain JSON-able data."""
        return {
            "safe": self.safe,
            "findings": [
                {"level": f.level, "kind": f.kind, "summary": f.summary, "details": list(f.details)}
                for f in self.findings
            ],
            "counts": dict(self.counts),
            "classes": [
                {
                    "name": name,
                    "pixels": {role: int(pixels[k]) for role, pixels in self.class_pixels.items()},
                    "images": {role: int(images[k]) for role, images in self.class_images.items()},
                }
                for k, name in enumerate(source.classes)
            ],
            "sizes": {
                statistic: [int(v) for v in function(self.sizes, 0)] if len(self.sizes) else None
                for statistic, function in (("min", np.min), ("median", np.median), ("max", np.max))
            },
        }


@dataclass
class _Facts:
    """What was seen of one image and its mask."""

    sample: Sample
    role: str
    size: tuple[int, int] | None = None  # width, height, upright
    mask_size: tuple[int, int] | None = None
    histogram: NDArray[np.int64] | None = None  # of mask values, (256,)
    errors: list[str] = field(default_factory=list)
    digest: bytes = b""


def check(
    source: Source,
    *,
    crop: tuple[int, int] | None,
    max_pixels: int,
    workers: int,
    fast: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a data set.

    Args:
        source: an open data set.
        crop: training crop, to count smaller images; None: not counted.
        max_pixels: larger images are errors [pixels].
        workers: threads that read.
        fast: headers of up to 2,000 images and 200 masks only, as before training.
        progress: called with (images done, images in all).
    """
    jobs = _jobs(source, fast)
    facts: list[_Facts] = []
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for seen in pool.map(lambda job: _look(job, source, max_pixels, fast), jobs):
            facts.append(seen)
            if progress is not None:
                progress(len(facts), len(jobs))
    findings = [*_errors(facts, source), *_across(facts, source, fast), *_warnings(facts, source, crop)]
    histograms = {role: [f for f in facts if f.role == role and f.histogram is not None] for role in ("labeled", "val")}
    return Report(
        findings=tuple(sorted(findings, key=lambda finding: finding.level != "error")),
        counts={"labeled": len(source.labeled), "unlabeled": len(source.unlabeled), "val": len(source.val)},
        class_pixels={role: _sum(seen, source.num_classes, pixels=True) for role, seen in histograms.items() if seen},
        class_images={role: _sum(seen, source.num_classes, pixels=False) for role, seen in histograms.items() if seen},
        sizes=np.array([f.size for f in facts if f.size], np.int64).reshape(-1, 2),
    )


def _jobs(source: Source, fast: bool) -> list[tuple[Sample, str, bool]]:
    """(sample, role, whether to read its mask)."""
    jobs = []
    for role, samples in (("labeled", source.labeled), ("val", source.val), ("unlabeled", source.unlabeled)):
        for position, sample in enumerate(samples):
            if fast and position >= _FAST_IMAGES:
                break
            jobs.append((sample, role, role != "unlabeled" and not (fast and position >= _FAST_MASKS)))
    return jobs


def _look(job: tuple[Sample, str, bool], source: Source, max_pixels: int, fast: bool) -> _Facts:
    sample, role, want_mask = job
    facts = _Facts(sample, role)
    try:
        facts.size = _header_size(sample.image) if fast else read_image(sample.image, max_pixels).size
        if not fast:
            facts.digest = hashlib.blake2b(sample.image.read_bytes(), digest_size=16).digest()
    except DataError as error:
        facts.errors.append(str(error))
    if want_mask and sample.mask is not None:
        try:
            mask = read_mask(
                sample.mask,
                palette=source.palette if source.rgb_masks else None,
                ignore=source.ignore,
                max_pixels=max_pixels,
            )
        except DataError as error:
            facts.errors.append(str(error))
        else:
            facts.mask_size = (mask.shape[1], mask.shape[0])
            facts.histogram = np.bincount(mask.ravel(), minlength=256)
    return facts


def _header_size(path: Path) -> tuple[int, int]:
    """Width and height as shown, from the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in _QUARTER_TURNS
    except (OSError, ValueError, SyntaxError):
        return read_image(path).size  # to say what is wrong, in the same words as everywhere
    return (height, width) if turned else (width, height)


def _errors(facts: Sequence[_Facts], source: Source) -> Iterator[Finding]:
    """What is wrong with single files."""
    lines: dict[str, list[str]] = defaultdict(list)
    for seen in facts:
        lines["unreadable"] += seen.errors
        mask = seen.sample.mask
        if mask is None and seen.role != "unlabeled":
            lines["no-mask"].append(str(seen.sample.image))
        if seen.size and seen.mask_size and seen.size != seen.mask_size:
            lines["size"].append(f"{mask} is {_by(seen.mask_size)}, its image {seen.sample.image} is {_by(seen.size)}")
        if seen.histogram is not None:
            wrong = [v for v in np.flatnonzero(seen.histogram) if v >= source.num_classes and v != source.ignore]
            if wrong:
                lines["values"].append(f"{mask} holds {', '.join(map(str, wrong[:8]))}{' ...' * (len(wrong) > 8)}")
    summaries = {
        "unreadable": "{} files cannot be read; replace or remove them",
        "no-mask": "{} labelled or validation images have no mask",
        "size": "{} masks have another size than their image",
        "values": f"{{}} masks hold values that are no class (0 to {source.num_classes - 1}, {source.ignore} = ignore)",
    }
    for kind, summary in summaries.items():
        if lines[kind]:
            yield Finding("error", kind, summary.format(len(lines[kind])), tuple(lines[kind]))
    values = {int(v) for seen in facts if seen.histogram is not None for v in np.flatnonzero(seen.histogram)}
    if values == {0, IGNORE} and source.ignore == IGNORE:
        yield Finding(
            "error",
            "coding",
            "the masks hold only 0 and 255, and 255 means ignored: if 255 is your object, divide the masks by 255 "
            "so that they hold 0 and 1",
        )


def _across(facts: Sequence[_Facts], source: Source, fast: bool) -> Iterator[Finding]:
    """What is wrong between files: leaks, duplicates, orphans."""
    roles: dict[str, set[str]] = defaultdict(set)
    for role, samples in (("labeled", source.labeled), ("unlabeled", source.unlabeled), ("val", source.val)):
        for sample in samples:
            roles[sample.id].add(role)
    for first, second in (("labeled", "val"), ("unlabeled", "val"), ("labeled", "unlabeled")):
        shared = tuple(sorted(key for key, where in roles.items() if {first, second} <= where))
        if shared:
            level: Literal["error", "warning"] = "error" if second == "val" else "warning"
            words = f"{len(shared)} images are in both the {first} and the {second} list"
            yield Finding(level, "leak", words, shared)
    if fast:
        return
    same: dict[bytes, list[_Facts]] = defaultdict(list)
    for seen in facts:
        if seen.digest and seen.sample.id not in {other.sample.id for other in same[seen.digest]}:
            same[seen.digest].append(seen)
    groups = [group for group in same.values() if len(group) > 1]
    leaks = [group for group in groups if "val" in (found := {seen.role for seen in group}) and len(found) > 1]
    inside = [group for group in groups if group not in leaks]
    if leaks:
        words = f"{len(leaks)} images are in training and validation under different names; remove one of each"
        yield Finding("error", "duplicate-leak", words, _names(leaks))
    if inside:
        yield Finding("warning", "duplicate", f"{len(inside)} images occur more than once", _names(inside))
    orphans = _orphans(facts, source)
    if orphans:
        yield Finding("warning", "orphan", f"{len(orphans)} masks have no image of their name", orphans)


def _orphans(facts: Sequence[_Facts], source: Source) -> tuple[str, ...]:
    """Masks in the folder of the used ones that belong to no image file of the data set."""
    folder, images = source.root / "masks", source.root / "images"
    if not folder.is_dir() or not images.is_dir():
        return ()
    known = find_files(images)
    return tuple(str(path) for key, path in find_files(folder).items() if key not in known)


def _warnings(facts: Sequence[_Facts], source: Source, crop: tuple[int, int] | None) -> Iterator[Finding]:
    blank = tuple(
        str(seen.sample.mask)
        for seen in facts
        if seen.histogram is not None and seen.histogram.sum() == seen.histogram[source.ignore]
    )
    if blank:
        yield Finding("warning", "blank", f"{len(blank)} masks have no pixel of any class", blank)
    for role in ("labeled", "val"):
        masks = [seen for seen in facts if seen.role == role and seen.histogram is not None]
        absent = [source.classes[k] for k in np.flatnonzero(_sum(masks, source.num_classes, pixels=True) == 0)]
        if masks and absent:
            words = f"{len(absent)} classes never occur in the {role} masks: {', '.join(absent[:10])}"
            yield Finding("warning", "absent", words + " ..." * (len(absent) > 10))
    sizes = [seen.size for seen in facts if seen.size]
    if crop is not None and sizes:
        small = sum(width < crop[1] or height < crop[0] for width, height in sizes)
        if small:
            words = f"{small} of {len(sizes)} images are smaller than the crop {crop[1]}x{crop[0]} and will be padded"
            yield Finding("warning", "small", words)
    outside = [(seen, _outside(seen)) for seen in facts if source.rgb_masks and seen.histogram is not None]
    strange = tuple(f"{seen.sample.mask}: {100 * share:.1f} % of its pixels" for seen, share in outside if share)
    if strange:
        words = f"{len(strange)} RGB masks have colours outside the palette, which count as ignored"
        yield Finding("warning", "colours", words, strange)


def _outside(seen: _Facts) -> float:
    assert seen.histogram is not None
    return float(seen.histogram[IGNORE] / seen.histogram.sum())


def _sum(facts: Sequence[_Facts], classes: int, *, pixels: bool) -> NDArray[np.int64]:
    rows = [seen.histogram[:classes] for seen in facts if seen.histogram is not None]
    stacked = np.array(rows, np.int64).reshape(-1, classes)
    return np.asarray((stacked if pixels else stacked > 0).sum(0), np.int64)


def _names(groups: Sequence[Sequence[_Facts]]) -> tuple[str, ...]:
    return tuple(" = ".join(f"{seen.sample.image} ({seen.role})" for seen in group) for group in groups)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
