"""From inspected files to what is wrong with a data set, and how to mend it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from allspark.data.check.files import Fault, Inspected
from allspark.data.image import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from allspark.data.sets.lists import find_files
from allspark.data.shards import Shards
from allspark.data.source import Role, Sample, Source
from allspark.errors import DataError

Level = Literal["error", "warning"]

ROLE_NAMES: dict[Role, str] = {"labeled": "labelled", "val": "validation", "unlabeled": "unlabelled"}


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with all the files that have it.

    Attributes:
        level: an error makes training unsafe or its scores wrong; a warning is worth knowing.
        kind: a short name that does not change.
        summary: what is wrong, in how many files.
        fix: what to do about it.
        details: one line for each file concerned, naming it.
        files: these files.
        paste: lines ready for classes.txt.
    """

    level: Level
    kind: str
    summary: str
    fix: str = ""
    details: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    paste: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The finding on one line: summary, first detail, fix."""
        text = f"{self.summary}: {self.details[0]}" if self.details else self.summary
        return f"{text}; {self.fix}" if self.fix else text


def layout_findings(source: Source) -> Iterator[Finding]:
    """What was wrong when the data set was opened."""
    by_fix: dict[str, list[str]] = defaultdict(list)
    for fault in source.faults:
        what, _, fix = fault.partition("; ")
        by_fix[fix].append(what)
    for fix, (what, *more) in by_fix.items():
        if more:
            yield Finding("error", "layout", f"{len(more) + 1} faults of files and lists", fix, (what, *more))
        else:
            yield Finding("error", "layout", what, fix)


def unread_findings(source: Source) -> Iterator[Finding]:
    """Pictures and arrays beside the images and masks that are of no kind that is read."""
    samples = _files(source)
    folders = _image_folders(samples)
    folders |= {folder_of(sample.mask, sample.id) for sample in samples if sample.mask is not None}
    unread = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in UNREAD_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if unread:
        kinds = ", ".join(sorted({path.suffix for path in unread}))
        summary = f"{count(len(unread), 'file')} of a kind that is not read ({kinds})"
        fix = f"save them as one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        yield finding_of("warning", "unread", summary, fix, [Fault("unread", str(p), str(p)) for p in unread])


def list_findings(source: Source) -> Iterator[Finding]:
    """Lists that are empty."""
    if not source.labeled:
        fix = "add masks of the same names as their images, or name the labelled images in a list (data.labeled)"
        yield Finding("error", "no-labeled", "no labelled image: there is nothing to learn from", fix)
    if not source.val:
        fix = "name some images with masks in val.txt (data.val)"
        yield Finding("warning", "no-val", "no validation image: no score can tell how good a run is", fix)
    if not source.unlabeled:
        fix = "add images without masks, make lists with `allspark split`, or train with method.name=supervised"
        yield Finding("error", "no-unlabeled", "no unlabelled image: only supervised training is possible", fix)


def file_findings(inspected: Sequence[Inspected]) -> Iterator[Finding]:
    """Files that are missing or cannot be read."""
    words = {
        "unreadable": ("{} that cannot be read", "file", "replace or remove them"),
        "no-mask": (
            "{} without a mask among the labelled and validation images",
            "image",
            "add the masks, or take the images off these lists: unlabelled images need none",
        ),
        "mask-form": ("{} that hold no class ids", "mask", "save them as PNG with one 8-bit class id a pixel"),
    }
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in dict.fromkeys(fault for item in inspected for fault in item.faults):
        by_kind[fault.kind].append(fault)
    for kind, (summary, noun, fix) in words.items():
        if faults := by_kind[kind]:
            yield finding_of("error", kind, summary.format(count(len(faults), noun)), fix, faults)


def size_findings(inspected: Sequence[Inspected], crop: tuple[int, int] | None) -> Iterator[Finding]:
    """Masks of another size than their image, and images smaller than the crop (height, width)."""
    differing = [item for item in inspected if item.size and item.mask_size and item.size != item.mask_size]
    if differing:
        faults = [Fault("size", str(item.sample.mask), _two_sizes(item)) for item in differing]
        fix = "export masks at the size of their image, without interpolation between class ids"
        yield finding_of("error", "size", f"{count(len(faults), 'mask')} of another size than the image", fix, faults)
    sizes = [item.size for item in inspected if item.size]
    small = smaller_than(sizes, crop)
    if crop is not None and small:
        yield Finding(
            "warning",
            "small",
            f"{small} of {count(len(sizes), 'image')} smaller than the crop of {crop[1]}x{crop[0]}: they are padded",
            "lower data.crop if that is most of them",
        )


def smaller_than(sizes: Iterable[tuple[int, int]], crop: tuple[int, int] | None) -> int:
    """How many (width, height) are smaller than a crop (height, width) in one direction at least."""
    return 0 if crop is None else sum(width < crop[1] or height < crop[0] for width, height in sizes)


def _two_sizes(item: Inspected) -> str:
    assert item.size is not None
    assert item.mask_size is not None
    line = f"{item.sample.mask} is {_by(item.mask_size)}, its image {item.sample.image} is {_by(item.size)}"
    if item.size == item.mask_size[::-1]:
        return (
            f"{line} (one of them lies on its side: the image's EXIF orientation counts, was the mask drawn without?)"
        )
    return line


def name_findings(source: Source) -> Iterator[Finding]:
    """The same id twice."""
    lists: dict[Role, list[str]] = {
        "labeled": [sample.id for sample in source.labeled],
        "val": [sample.id for sample in source.val],
        "unlabeled": [] if isinstance(source.unlabeled, Shards) else [sample.id for sample in source.unlabeled],
    }
    for role, ids in lists.items():
        twice = [key for key, count in Counter(ids).items() if count > 1]
        if twice:
            summary = f"{count(len(twice), 'id')} more than once among the {ROLE_NAMES[role]} images"
            yield finding_of("error", "same-id", summary, "give every image a name of its own", _as_faults(twice))
    pairs: tuple[tuple[Role, Role, Level], ...] = (
        ("labeled", "val", "error"),
        ("unlabeled", "val", "error"),
        ("labeled", "unlabeled", "warning"),
    )
    for first, second, level in pairs:
        shared = sorted({*lists[first]} & {*lists[second]})
        if shared:
            leak = second == "val"
            summary = f"{count(len(shared), 'image')} in both the {ROLE_NAMES[first]} and the {ROLE_NAMES[second]} list"
            fix = "take them off one of the lists" + (", else the scores say nothing" if leak else "")
            yield finding_of(level, "leak" if leak else "overlap", summary, fix, _as_faults(shared))


def _as_faults(ids: Iterable[str]) -> list[Fault]:
    return [Fault("id", key, key) for key in ids]


def duplicate_findings(inspected: Sequence[Inspected]) -> Iterator[Finding]:
    """Images that are the same byte by byte under different names."""
    same: dict[bytes, dict[str, list[Inspected]]] = defaultdict(dict)
    for item in inspected:
        if item.digest:
            same[item.digest].setdefault(item.sample.id, []).append(item)
    leaks: list[Fault] = []
    others: list[Fault] = []
    for by_id in same.values():
        if len(by_id) > 1:
            group = [item for copies in by_id.values() for item in copies]
            in_val = {item.role == "val" for item in group}
            line = " = ".join(f"{item.sample.image} ({ROLE_NAMES[item.role]})" for item in group)
            (leaks if len(in_val) == 2 else others).append(Fault("equal", str(group[0].sample.image), line))
    if leaks:
        summary = f"{count(len(leaks), 'image')} in training and validation under different names (equal files)"
        yield finding_of("error", "duplicate-leak", summary, "remove one of each, else the scores say nothing", leaks)
    if others:
        summary = f"{count(len(others), 'image')} more than once (equal files)"
        yield finding_of("warning", "duplicate", summary, "remove one of each, unless they are to count twice", others)


def orphan_findings(source: Source) -> Iterator[Finding]:
    """Masks in the folders of the used ones that belong to no image."""
    samples = _files(source)
    used = {sample.mask for sample in samples if sample.mask is not None}
    image_folders = _image_folders(samples)
    mask_folders = {folder_of(sample.mask, sample.id) for sample in samples if sample.mask is not None}
    if not used:
        mask_folders = {source.root / "masks"}  # perhaps none is used because none has the name of its image
    known = {sample.id for sample in samples}
    found: list[Path] = []
    try:
        for folder in image_folders:
            known.update(find_files(folder))
        for folder in sorted(mask_folders - image_folders):
            found += [path for key, path in find_files(folder).items() if key not in known and path not in used]
    except DataError as error:
        yield Finding("warning", "ambiguous", str(error))
    if found:
        faults = [Fault("orphan", str(path), str(path)) for path in found]
        summary = f"{count(len(faults), 'mask')} without an image of that name"
        yield finding_of("warning", "orphan", summary, "name each mask like its image (another suffix is fine)", faults)


def _files(source: Source) -> tuple[Sample, ...]:
    """All samples but those in tar files, whose names are in an index and belong to no other file."""
    unlabeled = () if isinstance(source.unlabeled, Shards) else source.unlabeled
    return (*source.labeled, *source.val, *unlabeled)


def _image_folders(samples: Iterable[Sample]) -> set[Path]:
    return {folder_of(sample.image, sample.id) for sample in samples if isinstance(sample.image, Path)}


def folder_of(path: Path, key: str) -> Path:
    """The folder that an id (a path without suffix) is relative to."""
    depth = len(Path(key).parts)
    inside = path.with_suffix("").parts[-depth:]
    return path.parents[depth - 1] if "/".join(inside) == key else path.parent


def finding_of(
    level: Level, kind: str, summary: str, fix: str, faults: Sequence[Fault], paste: tuple[str, ...] = ()
) -> Finding:
    """Return the finding that these files have in common."""
    lines, files = tuple(fault.line for fault in faults), tuple(fault.file for fault in faults)
    return Finding(level, kind, summary, fix, lines, files, paste)


def count(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def percent(share: float) -> str:
    """Return a share in percent; what is there is never shown as zero."""
    return "< 0.01 %" if 0 < share < 0.0001 else f"{100 * share:.2f} %"
