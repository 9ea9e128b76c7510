"""Text that others wrote, made fit to be shown."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control characters, invisible ones, halves of characters, ends of lines


def printable(text: str) -> str:
    r"""Show what a terminal would obey, or not show at all, as Python writes it in a string: ``\x1b``, ``\u202e``.

    Names of files and classes come from other people: an escape sequence in one of them could clear the screen.
    """
    if text.isprintable():
        return text
    return "".join(ascii(x)[1:-1] if unicodedata.category(x) in _HIDDEN else x for x in text)
