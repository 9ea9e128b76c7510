"""Class names and colours of a data set: classes.txt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from allspark.batch import IGNORE
from allspark.data.image import is_coloured, mode_of, read_image, read_mask
from allspark.data.source import RGB, default_palette
from allspark.errors import DataError

_HEADERS = {"id", "index", "value", "name", "names", "class", "classes", "label", "labels", "class name", "class_name"}


def read_classes(path: Path, masks: Iterable[Path] = ()) -> tuple[tuple[str, ...], tuple[RGB, ...], bool]:
    """Read classes.txt: a name a line, or `id<TAB>name<TAB>R G B` (colours optional, id 255 is the ignore entry).

    Args:
        path: the file.
        masks: masks of the data set, from which a missing file is guessed in the error message.

    Returns:
        Names, colours, and whether the colours are the file's own.

    Raises:
        DataError: the file is missing or malformed; the message says how it should look.
    """
    try:
        lines = [line.rstrip() for line in path.read_text("utf-8-sig").splitlines()]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file; {_suggestion(masks)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    names: list[str] = []
    colours: list[RGB | None] = []
    _require_names(path, lines)
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        where = f"{path}, line {number}"
        if len(fields) == 1:
            fields = [str(len(names)), *fields]
        elif fields[0] == str(IGNORE):
            continue
        if fields[0] != str(len(names)):
            raise DataError(
                f"{where}: expected class id {len(names)}, got {fields[0]!r}; ids go up from 0 without gaps"
            )
        _require_new(fields[1], names, where)
        names.append(fields[1])
        colours.append(_colour(fields[2], where) if len(fields) > 2 and fields[2] else None)
    if len(names) < 2:
        raise DataError(f"{path}: {len(names)} classes; segmentation needs at least 2, one name a line")
    if len(names) > IGNORE:
        raise DataError(f"{path}: {len(names)} classes; at most {IGNORE} fit (the value {IGNORE} means ignore)")
    own = [colour for colour in colours if colour is not None]
    if len(own) == len(names):
        return tuple(names), tuple(own), True
    return tuple(names), default_palette(len(names)), False


def _require_new(name: str, names: list[str], where: str) -> None:
    if not name.isprintable():
        raise DataError(f"{where}: the name {name!r} holds a character that cannot be shown; remove it")
    if name in names:
        raise DataError(f"{where}: the class {name!r} stands here twice; every class needs a name of its own")


def _require_names(path: Path, lines: Iterable[str]) -> None:
    """Refuse `0,name`, a header, and lines without an id among others, all of which would become names of classes."""
    plain = [line for line in lines if line.strip() and not line.startswith("#")]
    form = "write the names alone, one a line, line 1 for mask value 0, or `0<TAB>NAME<TAB>R G B` with tabs"
    if plain and re.split(r"[\t,;]", plain[0].strip().lower())[0].strip() in _HEADERS:
        raise DataError(f"{path}: {plain[0].strip()!r} looks like a header, not like a class; remove that line")
    tabs = [line for line in plain if "\t" in line]
    if tabs and len(tabs) < len(plain):
        lone = next(line for line in plain if "\t" not in line)
        raise DataError(f"{path}: {lone.strip()!r} has no id and no tab, but other lines have them; {form}")
    numbers = [int(match[1]) for line in plain if (match := re.match(r"\s*(\d+)\s*[,;:.\s]\s*\S", line))]
    rising = all(a < b for a, b in pairwise(numbers))
    if not tabs and len(numbers) > 1 and 2 * len(numbers) > len(plain) and rising:
        few = "" if len(numbers) == len(plain) else f", {len(plain) - len(numbers)} of {len(plain)} do not"
        raise DataError(f"{path}: {plain[0].strip()!r} and other lines begin with a number{few}; {form}")


def unnamed_classes() -> tuple[str, ...]:
    """What stands for the names where there are none, so that the masks can be looked at all the same."""
    return tuple(f"value {value}" for value in range(IGNORE))


def colours_in(masks: Iterable[Path]) -> list[RGB]:
    """Colours of RGB masks, most frequent first (at most 256)."""
    counts: Counter[RGB] = Counter()
    for path in masks:
        for count, colour in read_image(path).getcolors(1 << 24) or []:
            if isinstance(colour, tuple):
                counts[colour[0], colour[1], colour[2]] += count
    return [colour for colour, _ in counts.most_common(256)]


def is_rgb(path: Path) -> bool:
    """Tell from its header whether a mask is an RGB picture."""
    return mode_of(path).startswith("RGB")


def _colour(text: str, where: str) -> RGB:
    parts = text.replace(",", " ").split()
    if len(parts) != 3 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise DataError(f"{where}: a colour is three numbers from 0 to 255, as in `128 64 0`; got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _suggestion(masks: Iterable[Path]) -> str:
    """Say what classes.txt should hold, from a look at some masks."""
    some = [path for path, _ in zip(masks, range(20), strict=False)]
    example = "write one class name a line, line 1 for mask value 0"
    coloured = [path for path in some if is_coloured(path)]
    if coloured:
        colours = " | ".join(" ".join(map(str, colour)) for colour in colours_in(coloured)[:8])
        return (
            f"the masks are RGB pictures with the colours {colours}; write `0<TAB>NAME<TAB>R G B` a line, one a class"
        )
    values: set[int] = set()
    for path in some:
        try:
            values |= set(np.unique(read_mask(path)).tolist())
        except DataError:
            continue  # `allspark check` lists damaged masks
    if not values:
        return example
    if values == {0, IGNORE}:
        return f"{example}; the masks hold 0 and 255 only: if 255 is your object, divide the masks by 255 (0 and 1)"
    shown = ", ".join(map(str, sorted(values)))
    return f"{example}; the first masks hold the values {shown} (255 means ignore)"
