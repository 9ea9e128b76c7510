"""A file inside a tar file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Member:
    """An image inside a tar file; it answers what a path is asked for.

    Attributes:
        archive: the tar file.
        member: name inside it.
        offset: where its bytes begin [bytes].
        size: how many they are [bytes].
    """

    archive: Path
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.member).name

    @property
    def suffix(self) -> str:
        """The end of its name, with the dot."""
        return PurePosixPath(self.member).suffix

    def read_bytes(self) -> bytes:
        """Read the file."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)
