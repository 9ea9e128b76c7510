"""Passes that must not train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; afterwards each of its modules is in the mode that it was in.

    (``train(mode)`` on the whole network would thaw what is frozen on purpose: an encoder, a batch norm, a teacher.)
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
