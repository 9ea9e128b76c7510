"""What the folder-like layouts share: find the files, read the lists, tell labelled from unlabelled images."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from allspark.config.schema import DataConfig
from allspark.data.image import IMAGE_SUFFIXES
from allspark.data.shards import Shards, find_shards
from allspark.data.source import Sample, Source
from allspark.errors import DataError


@dataclass(frozen=True)
class Layout:
    """The image and mask files of a data set, found once.

    Attributes:
        root: folder that lists are relative to.
        images: image file of each id, in the order of the ids.
        masks: mask file of each id.
        image_folder: where images were looked for.
        mask_folder: where masks were looked for.
        advice: how masks get there, for messages.
        faults: what is wrong with files and lists, as `Source.faults`; filled while they are read.
    """

    root: Path
    images: dict[str, Path]
    masks: dict[str, Path]
    image_folder: Path
    mask_folder: Path
    advice: str = "named like their image (masks/NAME.png for images/NAME.jpg)"
    faults: list[str] = field(default_factory=list)

    def sample(self, name: str) -> Sample:
        """Return the sample of a known id."""
        return Sample(name, self.images[name], self.masks.get(name))

    def all(self) -> list[Sample]:
        """Return every image, in the order of the ids."""
        return [self.sample(name) for name in self.images]


def find_files(folder: Path, faults: list[str] | None = None) -> dict[str, Path]:
    """Map ids (path below the folder, without suffix, composed) to image files; links to folders are not followed.

    Args:
        folder: where to look; it need not exist.
        faults: gets a line for each file that has the id of another one, which is taken in its place; None: that is an
            error.

    Raises:
        DataError: two files have the same id.
    """
    found: dict[str, Path] = {}
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            path = Path(current, name)
            key = composed(PurePosixPath(os.path.relpath(current, folder).replace(os.sep, "/"), stem).as_posix())
            if key in found:
                line = f"{path} and {found[key].name} have the same id {key!r}; remove or rename one of them"
                if faults is None:
                    raise DataError(line)
                faults.append(line)
                continue
            found[key] = path
    return dict(sorted(found.items()))


def composed(name: str) -> str:
    """A name with each accent in its letter: macOS writes umlauts in two characters, others in one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_list(path: Path, layout: Layout, *, may_be_empty: bool = False) -> tuple[Sample, ...]:
    """Read a list of images: on each line an id, an image path, or `IMAGE MASK` as in the published lists.

    Paths are relative to the data set's root. Names may contain spaces. Empty lines are skipped, and so are lines that
    begin with `#` unless there is an image of that name. A line that leaves the data set's folder or names no image is
    passed over; the layout's faults then name list, line and the path looked for.

    Raises:
        DataError: the list is missing, empty or no text.
    """
    samples: dict[str, Sample] = {}
    lines = 0
    by_path = {composed(_relative(file, layout.root)): name for name, file in layout.images.items()}
    for where, line in lines_of(path, layout.images.keys() | by_path.keys()):
        sample = _parse_line(line, layout, by_path, where)
        if sample is not None:
            samples.setdefault(sample.id, sample)
        lines += 1
    if not lines and not may_be_empty:
        raise DataError(f"{path}: the list is empty; write one image id a line")
    return tuple(samples.values())


def lines_of(path: Path, names: Container[str]) -> Iterator[tuple[str, str]]:
    """The lines of a list that say something, each after where it is: `PATH, line NUMBER`.

    Bytes that are no UTF-8 become surrogates, as in names of files; :func:`require_text` says so where nothing is named
    like that.

    Args:
        path: the list.
        names: what is taken as it stands, though it begins with `#` or has blanks at its ends.

    Raises:
        DataError: the list is missing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such list of images") from error
    for number, whole in enumerate(re.split("\r\n|\n|\r", text), 1):  # not splitlines(): names may hold U+2028
        line = whole if composed(whole) in names else whole.strip()
        comment = line.startswith("#") and not any(composed(begin) in names for begin in _beginnings(line))
        if line and not comment:
            yield f"{path}, line {number}", line


def _beginnings(line: str) -> Iterator[str]:
    """What may be the name that a line begins with."""
    yield line
    yield from (line[:place].strip() for place, character in enumerate(line) if character in " \t")


def require_text(line: str, where: str) -> None:
    """Refuse a line that is no UTF-8 and, as its caller knows, names nothing."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: not text in UTF-8 (character {error.start + 1})") from error


def _parse_line(line: str, layout: Layout, by_path: dict[str, str], where: str) -> Sample | None:
    def find(text: str) -> str | None:
        return composed(text) if composed(text) in layout.images else by_path.get(composed(text.removeprefix("./")))

    if (name := find(line)) is not None:
        return layout.sample(name)
    cuts = [line.index("\t")] if "\t" in line else [i for i, character in enumerate(line) if character == " "]
    for cut in cuts:
        if (name := find(line[:cut].strip())) is None:
            continue
        mask = line[cut:].strip()
        if PurePosixPath(mask).is_absolute() or ".." in PurePosixPath(mask).parts:
            layout.faults.append(f"{where}: {mask!r} leaves the data set's folder {layout.root}")
            return None
        sample = layout.sample(name)
        listed = layout.root / mask
        return replace(sample, mask=listed if sample.mask is None or os.path.isfile(listed) else sample.mask)
    require_text(line, where)
    # `IMAGE MASK`, whose image does not exist; else the whole line is a name.
    wanted = line[: cuts[0]] if len(cuts) == 1 and PurePosixPath(line).suffix in IMAGE_SUFFIXES else line
    parts = PurePosixPath(wanted).parts
    if PurePosixPath(wanted).is_absolute() or ".." in parts:
        layout.faults.append(f"{where}: {wanted!r} leaves the data set's folder {layout.root}")
        return None
    looked_for = layout.root / wanted if len(parts) > 1 else layout.image_folder / wanted
    name = os.path.splitext(wanted)[0].removeprefix(f"{layout.image_folder.name}/")
    near = difflib.get_close_matches(name, list(layout.images)[:20_000], 1, 0.8) if not layout.faults else ()
    hint = f"; did you mean {near[0]!r}?" if near else ""
    layout.faults.append(f"{where}: no image {looked_for}{'' if PurePosixPath(wanted).suffix else '.*'}{hint}")
    return None


def divide_images(
    source: Source,
    config: DataConfig,
    layout: Layout,
    *,
    train: Sequence[Sample],
    val: Sequence[Sample],
    labeled: Sequence[Sample] | None = None,
    require_labels: bool,
) -> Source:
    """Fill a source with its images: as the data set divides them itself, or as the configured lists say.

    Args:
        source: of the data set, without images.
        config: ``split``, ``labeled``, ``unlabeled``, ``val`` are read.
        layout: the files.
        train: all training images.
        val: validation images unless a list says otherwise; they are taken out of ``train``, not out of its lists.
        labeled: training images of which those with a mask are labelled unless a list says otherwise; None: all.
        require_labels: an empty labelled set is an error.

    Returns:
        The source with ``labeled``, ``unlabeled``, ``val``, the layout's faults and a note more.

    Raises:
        DataError: a list is missing or wrong, or no image is labelled.
    """
    labeled_list, unlabeled_list, val_list = configured_lists(config, layout.root)
    if val_list:
        val = read_list(val_list, layout)
    apart = _ids(val)
    if labeled_list:
        chosen = read_list(labeled_list, layout)
        if require_labels:
            _require_masks(chosen, labeled_list, layout)
    else:
        candidates = train if labeled is None else labeled
        chosen = tuple(sample for sample in candidates if sample.mask is not None and sample.id not in apart)
    shards = find_shards(unlabeled_list) if unlabeled_list else None
    rest: Sequence[Sample] = () if shards else train
    if unlabeled_list and not shards:
        rest = read_list(unlabeled_list, layout, may_be_empty=True)  # as of a split that labels all
    taken = apart if unlabeled_list else apart | _ids(chosen)
    if require_labels and not chosen and not layout.faults:
        raise DataError(
            f"no labelled image: looked for masks in {layout.mask_folder}, {layout.advice}; "
            f"{len(layout.images)} images were found in {layout.image_folder}"
        )
    return replace(
        source,
        labeled=chosen,
        unlabeled=Shards(shards) if shards else tuple(sample for sample in rest if sample.id not in taken),
        val=tuple(val),
        faults=(*source.faults, *layout.faults),
        notes=(*source.notes, *_note_of(apart & _ids(rest))),
    )


def _require_masks(samples: Sequence[Sample], where: Path, layout: Layout) -> None:
    missing = [sample for sample in samples if sample.mask is None or not os.path.isfile(sample.mask)]
    if missing:
        looked = missing[0].mask or layout.mask_folder / f"{missing[0].id}.png"
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        message = f"{where}: {missing[0].id!r} is listed as labelled but has no mask {looked}{more}"
        raise DataError(f"{message}; {layout.advice}")


def _note_of(dropped: set[str]) -> tuple[str, ...]:
    images = f"{len(dropped)} validation image{'s are' if len(dropped) > 1 else ' is'}"
    return (f"{images} kept out of training",) if dropped else ()


def configured_lists(config: DataConfig, root: Path) -> tuple[Path | None, Path | None, Path | None]:
    """Return the labelled, unlabelled and validation list that the configuration names.

    Raises:
        DataError: one of them does not exist.
    """
    chosen = {"labeled": config.labeled, "unlabeled": config.unlabeled, "val": config.val}
    if config.split is not None:
        folder = root / "splits" / config.split
        if not (folder / "labeled.txt").is_file():
            known = sorted(p.parent.relative_to(root / "splits").as_posix() for p in root.glob("splits/**/labeled.txt"))
            raise DataError(
                f"data.split: no file {folder / 'labeled.txt'}; "
                + (f"there are {', '.join(known)}" if known else f"make one with `allspark split {root} --labeled 1/8`")
            )
        for role in chosen:
            if chosen[role] is None and (folder / f"{role}.txt").is_file():
                chosen[role] = folder / f"{role}.txt"
    for role, path in chosen.items():
        if path is not None and not _is_there(role, path):
            if not _is_there(role, root / path):
                what = "list or tar file" if role == "unlabeled" else "list"
                raise DataError(f"data.{role}: no such {what} {path} (looked here and in {root})")
            chosen[role] = root / path
    return chosen["labeled"], chosen["unlabeled"], chosen["val"]


def _is_there(role: str, path: Path) -> bool:
    return path.is_file() or (role == "unlabeled" and find_shards(path) is not None)


def _ids(samples: Iterable[Sample]) -> set[str]:
    return {sample.id for sample in samples}


def _relative(path: Path, root: Path) -> str:
    text, start = str(path), f"{root}{os.sep}"
    return (text[len(start) :] if text.startswith(start) else text).replace(os.sep, "/")
