"""The errors that a user can cause, and how text that others wrote is shown.

The command line prints an error as one line and exits with 2.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control characters, invisible ones, halves of characters, ends of lines


class UserError(ValueError):
    """Something in the user's input is wrong: one line names the value, what was expected and the fix.

    ``quiet``: another process of the same training shows it. ``exit_code``: of the command line.
    """

    quiet = False
    exit_code: int = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))  # one line, also where it quotes what was given


class ConfigError(UserError):
    """A configuration file, a recipe or an override is wrong."""


class DataError(UserError):
    """An image, a mask, a list or a folder is missing or wrong."""


class CheckpointError(UserError):
    """A checkpoint or weight file is missing, damaged or does not fit."""


class NotFiniteError(UserError):
    """A loss, a gradient or a weight is infinite or not a number.

    ``step``: the weight update, counted from 1, if it is known.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


def printable(text: str) -> str:
    r"""Show what a terminal would obey, or not show at all, as Python writes it in a string: ``\x1b``, ``\u202e``.

    Names of files and classes come from other people: an escape sequence in one of them could clear the screen.
    """
    if text.isprintable():
        return text
    return "".join(ascii(x)[1:-1] if unicodedata.category(x) in _HIDDEN else x for x in text)
