"""Unlabelled images in tar files (the WebDataset layout), read in place: an index says where each image lies.

Ten million names take no memory in a process: the index is a file beside the tar, of which only the pages in use are
read.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from allspark.data.image import IMAGE_SUFFIXES
from allspark.data.source import Member, Sample
from allspark.errors import DataError
from allspark.files import atomic_write

_BLOCK = 512  # of tar files [bytes]
_MAGIC = "allspark tar index 1"
_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8"), ("name", "<u8")])  # name: where it ends in the names
_NO_INDEX = "{}: an index of it can be written neither beside it nor to {} ({})"


class Shards(Sequence[Sample]):
    """The images of some tar files as unlabelled samples; their ids are ARCHIVE/NAME without suffixes.

    Args:
        paths: tar files, in the order of the samples.

    Raises:
        DataError: a file is missing, is no tar file, holds no image, or a name that leaves its folder.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._indices = [_Index(path) for path in self.paths]
        self.counts = np.array([len(index) for index in self._indices], np.int64)
        self._ends = self.counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, position: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(position, slice):
            return tuple(self[i] for i in range(*position.indices(len(self))))
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        position %= len(self)
        shard = int(self._ends.searchsorted(position, "right"))
        place = position - int(self._ends[shard] - self.counts[shard])
        path, member = self.paths[shard], self._indices[shard].member(place)
        return Sample(f"{path.stem}/{os.path.splitext(member.member)[0]}", member)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and self.paths == other.paths and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.paths)

    def __reduce__(self) -> tuple[type[Shards], tuple[tuple[Path, ...]]]:
        return Shards, (self.paths,)

    @property
    def fingerprint(self) -> int:
        """Checksum of the names of all images and where they lie."""
        return zlib.crc32(repr([index.checksum for index in self._indices]).encode())


def find_shards(where: Path) -> tuple[Path, ...] | None:
    """The tar files that a path names: one, those of a folder, or those of a pattern; None: it is no such thing."""
    if where.suffix == ".tar":
        folder, pattern = where.parent, where.name
        if not any(character in pattern for character in "*?["):
            return (where,) if where.is_file() else None
    elif where.is_dir():
        folder, pattern = where, "*.tar"
    else:
        return None
    return tuple(sorted(folder.glob(pattern))) or None


class _Index:
    """Where the images of a tar file lie, from a file that is made when it is missing or older than the tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        self._length = stat.st_size
        wanted = {"magic": _MAGIC, "size": stat.st_size, "modified": stat.st_mtime_ns}
        places = _places(path)
        for place in places:
            if self._open(place, wanted):
                return
        entries, names = _scan(path)
        reason = ""
        for place in places:
            try:
                _write(place, wanted, entries, names)
            except OSError as error:
                reason = str(error.strerror)
                continue  # a read-only folder: the next place
            if self._open(place, wanted):
                return
        raise DataError(_NO_INDEX.format(path, places[-1].parent, reason))

    def __len__(self) -> int:
        return len(self._entries)

    def member(self, place: int) -> Member:
        """The image at a place."""
        offset, size, end = (int(value) for value in self._entries[place])
        start = int(self._entries[place - 1]["name"]) if place else 0
        if not offset + size <= self._length or not start <= end <= len(self._names):
            raise DataError(f"{self._path}: its index {self._place} is damaged; remove it, it is made anew")
        return Member(self._path, bytes(self._names[start:end]).decode("utf-8", "surrogateescape"), offset, size)

    def _open(self, place: Path, wanted: dict[str, object]) -> bool:
        try:
            with place.open("rb") as file:
                head = json.loads(file.readline(4096))
                begin = file.tell()
                length = os.fstat(file.fileno()).st_size
            count, names = int(head.pop("count")), int(head.pop("names"))
            self.checksum = int(head.pop("checksum"))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return False  # missing or damaged: it is made anew
        if head != wanted or length != begin + count * _ENTRY.itemsize + names or not count:
            return False
        self._place = place
        self._entries: NDArray[np.void] = np.memmap(place, _ENTRY, "r", begin, (count,))
        self._names: NDArray[np.uint8] = np.memmap(place, np.uint8, "r", begin + self._entries.nbytes, (names,))
        return int(self._entries[-1]["name"]) == names


def _places(path: Path) -> list[Path]:
    """Where the index may lie: beside the tar, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allspark"
    return [path.with_suffix(".tar.index"), cache / f"{zlib.crc32(os.fsencode(path.resolve())):08x}-{path.name}.index"]


def _write(place: Path, head: dict[str, object], entries: NDArray[np.void], names: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    checksum = zlib.crc32(names, zlib.crc32(entries.tobytes()))
    more = {"count": len(entries), "names": len(names), "checksum": checksum}
    with atomic_write(place) as file:
        line = json.dumps(head | more).encode()
        file.write(line + b" " * (-(len(line) + 1) % 8) + b"\n")  # numbers begin at a multiple of 8
        file.write(entries.tobytes())
        file.write(names)


def _scan(path: Path) -> tuple[NDArray[np.void], bytes]:
    """Find the images of a tar file: where they lie, and their names one after the other."""
    with path.open("rb") as file:
        found = list(_members(file, path))
    if not found:
        raise DataError(f"{path}: holds no image")
    names = [name for _, _, name in found]
    entries = np.empty(len(found), _ENTRY)
    entries["offset"] = [offset for offset, _, _ in found]
    entries["size"] = [size for _, size, _ in found]
    entries["name"] = np.cumsum([len(name) for name in names])
    return entries, b"".join(names)


def _members(file: IO[bytes], path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, size and name of each image."""
    length = os.fstat(file.fileno()).st_size
    if length < _BLOCK:
        raise DataError(f"{path}: not a tar file")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position, long_name, long_size = 0, None, None
        while position + _BLOCK <= length:
            head = content[position : position + _BLOCK]
            if not head.rstrip(b"\0"):
                return  # the end
            try:
                size = _number(head[124:136])
                valid = _byte_sum(head) == (_number(head[148:156]) - 256 + sum(head[148:156])) % _ADLER
            except ValueError:
                valid = False
            if not valid:
                raise DataError(f"{path}: not a tar file, or damaged at byte {position}")
            kind, begin = head[156:157], position + _BLOCK
            if kind in b"0\0" and long_size is not None:
                size = long_size
            if begin + size > length:
                raise DataError(f"{path}: ends in the middle of a file (byte {position})")
            if kind == b"L":
                long_name = content[begin : begin + size].rstrip(b"\0")
            elif kind == b"x":
                name, long_size = _extended(content[begin : begin + size], path)
                long_name = name if name is not None else long_name
            else:
                name = long_name if long_name is not None else _name(head)
                if kind in b"0\0" and _is_image(name):
                    _require_inside(name, path)
                    yield begin, size, name
                long_name = long_size = None
            position = begin + -(-size // _BLOCK) * _BLOCK


def _name(head: bytes) -> bytes:
    name = head[:100].partition(b"\0")[0]
    if head[345] and head[257:262] == b"ustar" and head[263:265] == b"00":
        return head[345:500].partition(b"\0")[0] + b"/" + name
    return name


_ADLER = 65521  # the largest prime below 2^16


def _byte_sum(head: bytes) -> int:
    """The sum of a header's bytes modulo 65521, twenty times faster than adding them up: Adler's checksum holds it.

    (A header's own checksum is this sum, with eight blanks, 256 in all, in its place.)
    """
    return ((zlib.adler32(head) & 0xFFFF) - 1) % _ADLER


def _number(field: bytes) -> int:
    """Octal digits, or (large files) bytes after a mark."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():
        raise ValueError(f"not a number: {digits!r}")  # int() takes signs, and a file of less than no bytes never ends
    return int(digits, 8)


def _extended(records: bytes, path: Path) -> tuple[bytes | None, int | None]:
    """Name and size of a PAX header; None: it does not say."""
    name, size = None, None
    try:
        while records:
            length, _, _ = records.partition(b" ")
            record, records = records[: int(length)], records[int(length) :]
            key, _, value = record[len(length) + 1 : -1].partition(b"=")
            if key == b"path":
                name = value
            elif key == b"size":
                if not value.isdigit():
                    raise ValueError("a size that is no number")
                size = int(value)
            if int(length) <= 0:
                raise ValueError("a record without length")
    except ValueError as error:
        raise DataError(f"{path}: damaged (an extended header)") from error
    return name, size


_SUFFIXES = frozenset(suffix[1:].encode() for suffix in IMAGE_SUFFIXES)


def _is_image(name: bytes) -> bool:
    return name.rpartition(b".")[2].lower() in _SUFFIXES and not name.rpartition(b"/")[2].startswith(b".")


def _require_inside(name: bytes, path: Path) -> None:
    if name.startswith(b"/") or (b".." in name and b".." in name.split(b"/")):
        shown = name.decode("utf-8", "replace")
        raise DataError(f"{path}: refused, the name {shown!r} in it leaves the folder")
