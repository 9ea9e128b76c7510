"""Lists of images with masks that a network made: written by ``allspark label``, read for ``data.pseudo``.

A line is `IMAGE MASK` with a tab between them. An image is an id of the data set or a path, relative to its folder; a
mask is a path relative to the list, so that list and masks can be moved together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from allspark.data.sets.lists import composed, lines_of, require_text
from allspark.data.shards import Shards
from allspark.data.source import Sample, Source
from allspark.errors import DataError


def read_pseudo(path: Path, source: Source) -> tuple[Sample, ...]:
    """Read a list of images with their pseudo masks.

    Args:
        path: the list; a space may stand for the tab, where it is clear which.
        source: the data set. Its validation images are refused: they would be learned from.

    Raises:
        DataError: the list is missing, empty, not UTF-8 or names a file that is not there; the message names the line.
    """
    known = _known(source)
    apart = {sample.id for sample in source.val} | {os.path.realpath(str(sample.image)) for sample in source.val}
    samples: dict[str, Sample] = {}
    for where, line in lines_of(path, known):
        image, mask = _divide(line, path, source, where)
        sample = _sample(image, known, source, where)
        if sample.id in apart or os.path.realpath(str(sample.image)) in apart:
            raise DataError(f"{where}: {image!r} is a validation image; training on it would falsify the scores")
        samples.setdefault(sample.id, Sample(sample.id, sample.image, _mask_of(mask, path, source.root)))
    if not samples:
        raise DataError(f"{path}: the list is empty; write `IMAGE MASK` a line, as `allspark label` does")
    return tuple(samples.values())


def find_list(path: Path, root: Path) -> Path:
    """Where a list is: as it is named, else in the data set's folder."""
    return root / path if not path.is_file() and (root / path).is_file() else path


def with_pseudo(source: Source, path: Path | None) -> Source:
    """The data set with the images of a list and their pseudo masks.

    Raises:
        DataError: there is no list, or as for :func:`read_pseudo`.
    """
    if path is None:
        raise DataError(
            "the method learns from images with pseudo masks: name their list, which `allspark label RUN --out DIR` "
            "writes, with data.pseudo=DIR/list.txt"
        )
    return replace(source, pseudo=read_pseudo(find_list(path, source.root), source))


def read_images(path: Path, source: Source) -> tuple[Sample, ...]:
    """Read a list of images, one a line; what follows a tab is passed over.

    Raises:
        DataError: as for :func:`read_pseudo`.
    """
    known = _known(source)
    samples: dict[str, Sample] = {}
    for where, line in lines_of(path, known):
        sample = _sample(line.partition("\t")[0].strip(), known, source, where)
        samples.setdefault(sample.id, sample)
    if not samples:
        raise DataError(f"{path}: the list is empty; write one image a line")
    return tuple(samples.values())


def name_in_list(image: Path, root: Path) -> str:
    """How a list names an image: relative to the data set's folder where it is inside, else by its whole path.

    Raises:
        DataError: a name that no list can hold.
    """
    image = Path(os.path.abspath(image))
    inside = image.is_relative_to(os.path.abspath(root))
    name = (image.relative_to(os.path.abspath(root)) if inside else image).as_posix()
    if {"\t", "\n", "\r"} & set(name) or name != name.strip() or name.startswith("#"):
        raise DataError(f"{image}: a name with a tab, a line's end, or an odd character at an end; rename the file")
    return name


def list_lines(pairs: Iterable[tuple[str, Path]], where: Path) -> str:
    """The text of a list.

    Args:
        pairs: names of images, and their masks.
        where: the list's file, which the masks' paths are relative to.
    """
    folder = os.path.realpath(where.parent)  # a step up from behind a link would lead elsewhere
    masks = ((image, os.path.relpath(os.path.realpath(mask), folder)) for image, mask in pairs)
    return "".join(f"{image}\t{Path(mask).as_posix()}\n" for image, mask in masks)


def _known(source: Source) -> dict[str, Sample]:
    """Images by their ids and by their paths below the data set's folder. Those in tar files are not looked through."""
    pools: Sequence[Sequence[Sample]] = (source.labeled, source.unlabeled, source.val)
    samples = [sample for pool in pools if not isinstance(pool, Shards) for sample in pool]
    root = f"{source.root}{os.sep}"
    by_path = {composed(str(sample.image).removeprefix(root).replace(os.sep, "/")): sample for sample in samples}
    return by_path | {sample.id: sample for sample in samples}


def _sample(image: str, known: Mapping[str, Sample], source: Source, where: str) -> Sample:
    """The image that a line names."""
    sample = known.get(composed(image)) or Sample(image, source.root / image)
    if isinstance(sample.image, Path) and not os.path.isfile(sample.image):
        require_text(image, where)
        raise DataError(f"{where}: no image {sample.image}")
    return sample


def _divide(line: str, path: Path, source: Source, where: str) -> tuple[str, str]:
    """Image and mask of a line."""
    require_text(line, where)
    if "\t" in line:
        image, _, mask = line.partition("\t")
        image, mask = image.strip(), mask.strip()
        if os.path.isfile(_mask_of(mask, path, source.root)):
            return image, mask
        raise DataError(f"{where}: no mask {_mask_of(mask, path, source.root)} of {image!r}")
    for cut in (place for place, character in enumerate(line) if character == " "):
        image, mask = line[:cut].strip(), line[cut:].strip()
        if os.path.isfile(_mask_of(mask, path, source.root)):
            return image, mask
    raise DataError(f"{where}: expected an image, a tab and its mask, got {line!r} (no such mask)")


def _mask_of(mask: str, path: Path, root: Path) -> Path:
    """Beside the list; else in the data set's folder."""
    beside = Path(os.path.normpath(os.path.join(os.path.realpath(path.parent), mask)))
    return beside if beside.is_file() or not (root / mask).is_file() else root / mask
