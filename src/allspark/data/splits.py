"""Make labelled and unlabelled lists: the partitions that semi-supervised results are reported on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from allspark.batch import IGNORE
from allspark.data.decode import prefetch, read_sample
from allspark.data.source import Sample, Source
from allspark.errors import DataError, UserError
from allspark.files import atomic_write


@dataclass(frozen=True)
class SplitResult:
    """What `allspark split` made."""

    folder: Path
    labeled: int
    unlabeled: int
    missing_classes: tuple[str, ...]  # with masks somewhere, but with none in the labelled part (stratified only)


def make_split(
    source: Source,
    labeled: str,
    seed: int = 0,
    *,
    stratified: bool = False,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SplitResult:
    """Choose labelled images at random and write ROOT/splits/NAME/{labeled,unlabeled}.txt.

    Candidates are the source's labelled training images; all other training images become unlabelled. The choice
    depends on the seed and the ids alone, not on the machine.

    Args:
        source: an open data set.
        labeled: a fraction of all training images (`1/8`), or a number of images (`46`).
        seed: of the choice.
        stratified: first make sure that each class, rarest first, has a labelled image; reads all candidates' masks.
        name: of the split; None: made from the other arguments.
        progress: called with (masks read, masks in all).

    Raises:
        UserError: the fraction makes no sense, more is asked than there is, or another split has that name.
    """
    candidates = {sample.id: sample for sample in source.labeled}
    everything = {**candidates, **{sample.id: sample for sample in source.unlabeled}}
    count = _count(labeled, len(everything))
    if count > len(candidates):
        raise UserError(
            f"--labeled {labeled}: {count} of {len(everything)} training images, but only {len(candidates)} have "
            "masks; ask for fewer, or add masks"
        )
    order = sorted(
        candidates, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()
    )
    missing: tuple[str, ...] = ()
    chosen = order[:count]
    if stratified:
        present = _classes_present([candidates[key] for key in order], source, progress)
        chosen = _keep_rare(order, present, count)
        lost = present.any(0) & ~present[[order.index(key) for key in chosen]].any(0)
        missing = tuple(source.classes[k] for k in np.flatnonzero(lost))
    if name is not None and (not name.strip() or {"/", "\\"} & set(name) or name.startswith(".")):
        raise UserError(f"--name {name}: a plain name is needed, without folders and not beginning with a dot")
    folder = source.root / "splits" / (name or f"{labeled.replace('/', '_')}-seed{seed}{'-stratified' * stratified}")
    rest = sorted(set(everything) - set(chosen))
    _write(folder, {"labeled": sorted(chosen), "unlabeled": rest})
    return SplitResult(folder, len(chosen), len(rest), missing)


def _count(text: str, total: int) -> int:
    wrong = f"--labeled {text}: expected a fraction such as 1/8, or a number of images"
    if not set(text) <= set("0123456789./"):
        raise UserError(wrong)  # Fraction knows 1e-3 and 1e400 too
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(wrong) from error
    count = round(share * total) if "/" in text or "." in text else int(share)
    if "/" in text or "." in text:
        if not 0 < share <= 1:
            raise UserError(f"--labeled {text}: a fraction lies between 0 and 1")
        count = max(count, 1)
    if count < 1:
        raise UserError(f"--labeled {text}: at least one image must be labelled")
    return count


def _classes_present(
    samples: Sequence[Sample], source: Source, progress: Callable[[int, int], None] | None
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(samples, k), which classes each mask holds."""

    def present(sample: Sample) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        _, mask = read_sample(sample, source, want_mask=True, max_pixels=1 << 31)
        assert mask is not None
        found = np.bincount(mask[mask != IGNORE], minlength=source.num_classes) > 0
        return np.asarray(found[: source.num_classes])

    workers = os.cpu_count() or 1
    rows = []
    with closing(prefetch(samples, present, workers, ahead=2 * workers)) as found:
        for row in found:
            rows.append(row)
            if progress:
                progress(len(rows), len(samples))
    return np.array(rows)


def _keep_rare(order: Sequence[str], present: np.ndarray[tuple[int, int], np.dtype[np.bool_]], count: int) -> list[str]:
    """Take an image for each class, rarest first, then go on in the drawn order."""
    taken: list[int] = []
    for k in np.argsort(present.sum(0), kind="stable"):
        has_class = np.flatnonzero(present[:, k])
        if len(has_class) and not set(has_class.tolist()) & set(taken) and len(taken) < count:
            taken.append(int(has_class[0]))
    rest = [i for i in range(len(order)) if i not in set(taken)]
    return [order[i] for i in (taken + rest)[:count]]


def _write(folder: Path, lists: dict[str, list[str]]) -> None:
    contents = {folder / f"{role}.txt": "".join(f"{key}\n" for key in keys) for role, keys in lists.items()}
    if broken := next((key for keys in lists.values() for key in keys if {"\n", "\r"} & set(key)), None):
        raise DataError(f"{broken!r}: a name with a line's end, which no list can hold; rename the file")
    for path, text in contents.items():
        if path.exists() and path.read_text("utf-8", "surrogateescape") != text:
            raise DataError(f"{path} exists and is another split; give --name a new name or remove {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in contents.items():
        with atomic_write(path, "w") as file:
            file.write(text)
