"""Random choices within a step, on its device: a function of whole numbers, so of the state of no generator.

They are the same whichever process makes them, and after a run went on.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHANCES = 1 << 24  # the loader's random numbers are multiples of one part in so many


def key_of(chance: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """A whole number for each of the loader's random numbers (``Views.chance``)."""
    return (chance * _CHANCES).long()


def draws(first: Tensor, *more: Tensor | int) -> Tensor:
    """Numbers from [0, 1) with 32 digits of two, one for each combination of whole numbers; these are broadcast.

    Each number is mixed in by the 32-bit finaliser of Wellons (*Prospecting for Hash Functions*, 2018).
    """
    state = _mixed(first)
    for number in more:
        state = _mixed(state + 0x9E3779B9 + number)
    return state.double() / (1 << 32)


def draw_class(probability: Float[Tensor, " k"], draw: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Classes, one for each number from [0, 1); none of those without probability."""
    ends = probability.cumsum(0)
    return (draw[..., None] >= ends / ends[-1]).sum(-1)


def choose(eligible: Bool[Tensor, "*b n"], draw: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """The place of one of those that are True along the last axis, each as likely; 0 where none is.

    Args:
        eligible: what can be chosen.
        draw: from [0, 1).
    """
    number = (draw * eligible.sum(-1)).long()[..., None]
    return (eligible & (eligible.cumsum(-1) == number + 1)).int().argmax(-1)


def _mixed(number: Tensor) -> Tensor:
    number = number & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = (number ^ number >> shift) * factor & 0xFFFFFFFF
    return number ^ number >> 16
