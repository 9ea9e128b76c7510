"""What the pixels of the masks say: values, colours and classes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from allspark.batch import IGNORE
from allspark.data.check.files import Fault, Inspected
from allspark.data.check.findings import ROLE_NAMES, Finding, Level, count, finding_of, folder_of, percent
from allspark.data.source import Role, Source

_OFFERED = 24  # colours offered as classes
_WRONG_PALETTE = 0.5  # share of pixels outside the palette from which on it cannot be the right one


def value_findings(inspected: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """Mask values that are no class."""
    masks = [item for item in inspected if item.counts is not None]
    present: Counter[int] = Counter()
    faults, wrong = [], set()
    for item in masks:
        assert item.counts is not None
        present.update(item.counts)
        strange = [value for value in item.counts if value >= source.num_classes and value != source.ignore]
        if strange:
            wrong.update(strange)
            total = sum(item.counts.values())
            shown = ", ".join(f"{value} ({percent(item.counts[value] / total)})" for value in strange[:8])
            more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
            faults.append(Fault("values", str(item.sample.mask), f"{item.sample.mask} holds {shown}{more}"))
    # An ordinary mask may hold nothing but background and ignored pixels; all of them together may not.
    zero_or_255 = set(present) == {0, IGNORE} and not any(item.rgb for item in masks)
    if zero_or_255 and source.ignore == IGNORE:
        files = [Fault("coding", str(item.sample.mask), str(item.sample.mask)) for item in masks if item.counts]
        summary = f"looks like 0/255 coding: {count(len(files), 'mask')} with no other value, and 255 means ignored"
        yield finding_of("error", "coding", summary, _halve(source, masks), files)
    if faults:
        summary = (
            f"{count(len(faults), 'mask')} with values that are no class (classes are 0 to "
            f"{source.num_classes - 1}, {source.ignore} is ignored)"
        )
        fix = _halve(source, masks) if zero_or_255 else _mend_values(set(present), wrong, source, faults)
        yield finding_of("error", "values", summary, fix, faults)


def _mend_values(present: set[int], wrong: set[int], source: Source, faults: Sequence[Fault]) -> str:
    """The likely reason for wrong values, and what helps."""
    classes = source.num_classes
    lossy = [fault.file for fault in faults if Path(fault.file).suffix.lower() in {".jpg", ".jpeg"}]
    if lossy:
        return "JPEG changes the values of masks: export them again as PNG"
    if wrong == {classes} and 0 not in present:
        return "the ids seem to count from 1: subtract 1 from every mask (but not from ignored pixels)"
    if wrong == {classes}:
        return (
            f"if {classes} means unlabelled, write {source.ignore} in its place; if 0 is a background that classes.txt "
            f"does not name, make it the first line there; if {classes} is one more class, add it as the last line"
        )
    levels = present if len(present) <= classes else present - {source.ignore}
    if len(levels) <= classes and levels - {0, source.ignore} <= wrong:
        pairs = ", ".join(f"{value} -> {index}" for index, value in enumerate(sorted(levels)))
        return f"if the classes are coded as grey levels, renumber them: {pairs}"
    return f"write {source.ignore} for what does not count, or name all classes in classes.txt"


def _halve(source: Source, masks: Sequence[Inspected]) -> str:
    """The fix of masks coded 0/255, ready to run."""
    folder, suffix = source.root, ".png"
    for item in masks:
        if item.sample.mask is not None:
            folder, suffix = folder_of(item.sample.mask, item.sample.id), item.sample.mask.suffix
            break
    code = (  # run twice, it does no harm
        "import sys, numpy as np; from pathlib import Path; from PIL import Image; [Image.fromarray("
        f"(np.array(Image.open(f)) > 0).astype('uint8')).save(f) for f in Path(sys.argv[1]).rglob('*{suffix}')]"
    )
    return (
        f"if 255 is your object, write 1 in its place, so that the masks hold 0 and 1: "
        f'`python -c "{code}" {shlex.quote(str(folder))}`; if 255 does mean ignored, add masks with other classes'
    )


def colour_findings(inspected: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """RGB masks whose colours are not known, or not all of them."""
    strange = [item for item in inspected if item.outside or (item.rgb and item.counts is None)]
    for known in (False, True):
        masks = [item for item in strange if (item.counts is not None) == known]
        if not masks:
            continue
        totals: Counter[tuple[int, int, int]] = Counter()
        for item in masks:
            totals.update(dict(item.colours))
        faults = [Fault("colours", str(item.sample.mask), _colour_line(item)) for item in masks]
        everything = sum(sum(item.counts.values()) for item in inspected if item.rgb and item.counts is not None)
        share = sum(item.outside for item in masks) / max(everything, 1)
        first = source.num_classes if known else 0
        offers = tuple(
            f"{first + index}\tname{first + index}\t{r} {g} {b}"
            for index, ((r, g, b), _) in enumerate(totals.most_common(min(_OFFERED, IGNORE - first)))
        )
        lossy = any(item.sample.mask and item.sample.mask.suffix.lower() in {".jpg", ".jpeg"} for item in masks)
        blurred = "JPEG blurs colours: export the masks again as PNG; " if lossy else ""
        if known:
            summary = f"{percent(share)} of the pixels of RGB masks have colours outside the palette and are ignored"
            fix = f"{blurred}if some of these colours are classes, add their lines to classes.txt (most frequent first)"
            level: Level = "error" if share >= _WRONG_PALETTE else "warning"
            yield finding_of(level, "colours", summary, fix, faults, offers)
        else:
            summary = f"{count(len(masks), 'mask')} in RGB, but no colours are known for the classes"
            fix = f"{blurred}give each class its colour in classes.txt; these were found, most frequent first"
            yield finding_of("error", "rgb", summary, fix, faults, offers)


def _colour_line(item: Inspected) -> str:
    assert item.mask_size is not None
    shown = ", ".join(" ".join(map(str, colour)) for colour, _ in item.colours[:4])
    return f"{item.sample.mask}: {percent(item.outside / (item.mask_size[0] * item.mask_size[1]))} in {shown}" + (
        f" and {len(item.colours) - 4} more colours" if len(item.colours) > 4 else ""
    )


def class_findings(inspected: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """Classes and masks from which nothing can be learned."""
    blank = [item for item in inspected if item.counts is not None and set(item.counts) == {source.ignore}]
    if blank:
        faults = [Fault("blank", str(item.sample.mask), str(item.sample.mask)) for item in blank]
        summary = f"{count(len(faults), 'mask')} without a pixel of any class"
        yield finding_of("warning", "blank", summary, "check whether they were exported as they should be", faults)
    roles: tuple[Role, ...] = ("labeled", "val")
    for role in roles:
        read = [item for item in inspected if item.role == role and item.counts is not None]
        if read and all(set(item.counts or ()) <= {source.ignore} for item in read):
            what = f"no {ROLE_NAMES[role]} mask has a pixel of any class"
            why = "nothing can be learned" if role == "labeled" else "no score can be told"
            yield Finding("error", "all-blank", what, f"{why}: export the masks again, or name others")
    lists: tuple[tuple[Role, int], ...] = (("labeled", len(source.labeled)), ("val", len(source.val)))
    for role, expected in lists:
        masks = [item.counts for item in inspected if item.role == role and item.counts is not None]
        if not masks or len(masks) < expected:
            continue  # of masks that were not read, nothing is known
        present = set().union(*masks)
        absent = [name for index, name in enumerate(source.classes) if index not in present]
        if absent:
            names = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
            summary = f"{len(absent)} of {source.num_classes} classes in no {ROLE_NAMES[role]} mask: {names}"
            fix = "nothing can be learned of them" if role == "labeled" else "no score can be told for them"
            yield Finding("warning", "absent", summary, fix)
