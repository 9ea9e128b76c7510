"""How a running confidence of each class steers AEL: pure functions (Hu et al., NeurIPS 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.batch import Progress
from allspark.errors import ConfigError
from allspark.methods.draws import draws


def paste_probability(running: Float[Tensor, " k"], never: tuple[int, ...]) -> Float[Tensor, " k"]:
    """How likely each class is drawn to be pasted among labelled images: softmax of sqrt(1 - confidence)."""
    score = (1 - running).clamp(min=0).sqrt()
    for number in never:
        score[number] = -torch.inf
    return score.softmax(0)


def box_probability(running: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """How likely each class is drawn to be pasted among unlabelled images: softmax of 1 - confidence."""
    return (1 - running).softmax(0)


def holds(labels: Int[Tensor, "u H W"], wanted: Int[Tensor, " n"], least: float) -> Bool[Tensor, "n u"]:
    """Which images hold enough of each class that is wanted: a share of their pixels, 0 to 1."""
    return torch.stack([(labels == number).double().mean((1, 2)) >= least for number in wanted.unbind()])


def kept(
    labels: Int[Tensor, "b H W"], running: Float[Tensor, " k"], uniform: Float[Tensor, "b H W"]
) -> Bool[Tensor, "b H W"]:
    """Which pixels count: all that are taken for the weakest class, a share of the others by 1 - confidence.

    Args:
        labels: the classes that they are taken for.
        running: confidence of each class.
        uniform: random numbers from [0, 1).
    """
    weakness = (1 - running).clamp(min=0)
    share = weakness / weakness.max().clamp(min=torch.finfo(weakness.dtype).tiny)
    return uniform >= 1 - share[labels]


def uniform_map(labels: Int[Tensor, "b H W"], progress: Progress) -> Float[Tensor, "b H W"]:
    """One map of random numbers a class and step, for all images."""
    rows, columns = (torch.arange(size, device=labels.device) for size in labels.shape[1:])
    return draws(labels, progress.step, rows[:, None], columns)


def of_classes(mask: Int[Tensor, "b H W"], classes: Int[Tensor, "b n"]) -> Bool[Tensor, "b H W"]:
    """The pixels of some classes."""
    return (mask[:, None] == classes[:, :, None, None]).any(1)


def require_classes(never: tuple[int, ...], num_classes: int) -> None:
    """Ids of classes that are never pasted have to be classes, and to leave some.

    Raises:
        ConfigError: they are not, or do not.
    """
    if any(number >= num_classes for number in never):
        raise ConfigError(f"method.paste_never: there are {num_classes} classes, from 0 on, got {list(never)}")
    if len(set(never)) == num_classes:
        raise ConfigError(f"method.paste_never: no class is left that could be pasted, got {list(never)}")
