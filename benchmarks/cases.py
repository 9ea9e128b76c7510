"""What a measurement is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Work


@dataclass(frozen=True)
class Goal:
    """At least so many times faster, at most this share of the memory."""

    speed: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """One line of the table: the same work in several ways.

    Attributes:
        part: of the package.
        name: of the case.
        variants: each builds its work for a device. The first is the baseline that goals are against; ``product`` is
            what the command line runs, others that begin with ``product`` are its options.
        goal: of ``product``.
        turns: how often all variants are measured in turns, each time in a new process.
        warmups: runs of a turn that are not measured.
        repeats: runs of a turn that are.
        units: what one run of the work is, for rates.
        growth: classes, crop and images of a case of ``scaling``.
    """

    part: str
    name: str
    variants: dict[str, Callable[[str], Work]]
    goal: Goal = field(default=Goal())
    turns: int = 3
    warmups: int = 1
    repeats: int = 2
    units: tuple[int, str] | None = None
    growth: tuple[int, int, int] | None = None


@dataclass
class Call:
    """A function of random inputs."""

    function: Callable[[Any], Any]
    draw: Callable[[], Any]

    def inputs(self) -> Any:
        """Return new random arguments."""
        return self.draw()

    def run(self, inputs: Any) -> None:
        """Call once."""
        self.function(inputs)


PARTS = ("head", "bottleneck", "step", "inference", "data", "evaluation", "start", "scaling")
