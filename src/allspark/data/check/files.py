"""Inspect image and mask files: what a check knows of each."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from allspark.data.image import IGNORE_COLOUR, is_coloured, read_image, read_mask, require_file
from allspark.data.sets.classes import is_rgb
from allspark.data.source import RGB, Member, Role, Sample, Source, code_of
from allspark.errors import DataError

Depth = Literal["whole", "head", "none"]

_FAST_HEADS = 2000  # of each role, read before training starts
_FAST_MASKS: dict[Role, int] = {"labeled": 200, "val": 50, "unlabeled": 0}  # decoded before training starts
_COLOURS = 64  # kept of an RGB mask, the most frequent ones
_ORIENTATION, _QUARTER_TURNS = 0x0112, {5, 6, 7, 8}  # EXIF tag, and its values that swap width and height
_BAD_HEAD = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


class Fault(NamedTuple):
    """What is wrong with one file. ``line`` names it and says why."""

    kind: str
    file: str
    line: str


@dataclass(frozen=True)
class Rules:
    """How masks are coded; what a reading process needs beside the file names."""

    palette: tuple[RGB, ...] | None  # of RGB masks; None: no colours are known
    codes: Mapping[str, tuple[int, ...]]  # as in Source
    ignore: int
    max_pixels: int


@dataclass(frozen=True)
class Job:
    """One image to inspect with its mask: whole (decoded), or its header only."""

    index: int
    sample: Sample
    role: Role
    image: Depth
    mask: Depth


@dataclass
class Inspected:
    """What is known of one image and its mask after they were read.

    Attributes:
        index: of the job.
        sample: the image.
        role: the list that the image is in.
        size: width and height of the upright image [pixels]; None: unreadable.
        mask_size: the same of the mask.
        counts: pixels of each mask value; None: the mask was not decoded, or it is an RGB picture without a palette.
        rgb: the mask is an RGB picture.
        outside: number of pixels of an RGB mask with a colour outside the palette.
        colours: the most frequent of these colours, with their number of pixels.
        digest: hash of the image file's bytes; empty: not read.
        faults: what is wrong with the files.
    """

    index: int
    sample: Sample
    role: Role
    size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    counts: dict[int, int] | None = None
    rgb: bool = False
    outside: int = 0
    colours: tuple[tuple[RGB, int], ...] = ()
    digest: bytes = b""
    faults: list[Fault] = field(default_factory=list)


def files_to_read(source: Source, *, fast: bool) -> list[Job]:
    """Choose what a check reads: everything, or (fast) headers and some masks, spread evenly over each list."""
    jobs: list[Job] = []
    roles: tuple[tuple[Role, Sequence[Sample]], ...] = (
        ("labeled", source.labeled),
        ("val", source.val),
        ("unlabeled", source.unlabeled),
    )
    for role, samples in roles:
        read = _spread(len(samples), _FAST_HEADS if fast else len(samples))
        decoded = set(_spread(len(samples), _FAST_MASKS[role] if fast else len(samples)))
        for position in sorted({*read, *decoded}):
            mask: Depth = "whole" if position in decoded else "head"
            jobs.append(
                Job(
                    len(jobs),
                    samples[position],
                    role,
                    "head" if fast else "whole",
                    "none" if role == "unlabeled" else mask,
                )
            )
    return jobs


def _spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, the first and the last among them, always the same."""
    return [int(position) for position in np.linspace(0, count - 1, min(count, limit)).round()]


def inspect_files(jobs: Sequence[Job], rules: Rules) -> list[Inspected]:
    """Read some images and their masks, and say what is known of them."""
    return [_inspect(job, rules) for job in jobs]


def _inspect(job: Job, rules: Rules) -> Inspected:
    inspected = Inspected(job.index, job.sample, job.role)
    path, mask = job.sample.image, job.sample.mask
    try:
        if job.image == "whole":
            inspected.size = read_image(path, rules.max_pixels).size
            inspected.digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        else:
            inspected.size = _size_in_head(path, rules.max_pixels)
    except (DataError, OSError) as error:
        inspected.faults.append(Fault("unreadable", str(path), str(error)))
    if job.mask == "none":
        return inspected
    if mask is None or not os.path.lexists(mask):
        looked_for = f", looked for {mask}" if mask else ""
        inspected.faults.append(Fault("no-mask", str(path), f"{path}: no mask{looked_for}"))
        return inspected
    try:
        if job.mask == "whole":
            _decode_mask(inspected, mask, rules)
        else:
            inspected.mask_size = _size_in_head(mask, rules.max_pixels)
        if job.image == "head" and inspected.size and inspected.size != inspected.mask_size == inspected.size[::-1]:
            # Some PNGs tell of their orientation at the end only.
            inspected.size = read_image(path, rules.max_pixels).size
    except DataError as error:
        kind = "mask-form" if _decodes(mask, rules.max_pixels) else "unreadable"
        inspected.faults.append(Fault(kind, str(mask), str(error)))
    return inspected


def _decode_mask(inspected: Inspected, path: Path, rules: Rules) -> None:
    inspected.rgb = is_rgb(path) and (rules.palette is not None or is_coloured(path, rules.max_pixels))
    # With no colours known, an empty palette tells whether the picture can be read, and how large it is.
    palette = (rules.palette or ()) if inspected.rgb else None
    code = code_of(path, rules.codes)
    mask = read_mask(path, palette=palette, code=code, ignore=rules.ignore, max_pixels=rules.max_pixels)
    inspected.mask_size = (mask.shape[1], mask.shape[0])
    if not inspected.rgb or rules.palette is not None:
        counts = np.bincount(mask.ravel(), minlength=256)
        inspected.counts = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    if inspected.rgb and (inspected.counts is None or rules.ignore in inspected.counts):
        with Image.open(path) as image:
            found = image.convert("RGB").getcolors(1 << 24) or []
        known = {*(rules.palette or ()), IGNORE_COLOUR}
        # RGB images have colours of three numbers; Pillow's types allow for other modes.
        strange = [(colour, count) for count, colour in found if isinstance(colour, tuple) and colour not in known]
        ranked = sorted(strange, key=lambda pair: (-pair[1], pair[0]))
        inspected.outside = sum(count for _, count in ranked)
        inspected.colours = tuple(((c[0], c[1], c[2]), count) for c, count in ranked[:_COLOURS])


def _decodes(path: Path, max_pixels: int) -> bool:
    try:
        read_image(path, max_pixels)
    except DataError:
        return False
    return True


def _size_in_head(path: Path | Member, max_pixels: int) -> tuple[int, int]:
    """Width and height as shown, from the header alone."""
    if isinstance(path, Path) and path.suffix == ".mat":
        mask = read_mask(path)
        return mask.shape[1], mask.shape[0]
    try:
        if isinstance(path, Path):
            require_file(path)
        with Image.open(io.BytesIO(path.read_bytes()) if isinstance(path, Member) else path) as image:
            width, height = image.size
            # Of a PNG without EXIF at its beginning, Pillow would decode all pixels to look for it at the end.
            begins = image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info
            turned = begins and image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    except (*_BAD_HEAD, Image.DecompressionBombError):
        return read_image(path, max_pixels).size  # says what is wrong, in the same words as everywhere
    if width * height > max_pixels:
        return read_image(path, max_pixels).size
    return (height, width) if turned else (width, height)
