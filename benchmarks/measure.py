"""Time, peak memory, operations and bytes of a piece of work."""

from __future__ import annotations

import gc
import math
import platform
import re
import resource
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

MB = 1024 * 1024


class Work(Protocol):
    """Something to measure: fresh inputs are made outside the measured time."""

    def inputs(self) -> Any:
        """Return new random inputs."""

    def run(self, inputs: Any) -> None:
        """Do the work once."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle repeat."""
        return statistics.median(self.seconds)


def interleaved(works: Mapping[str, Work], repeats: int, warmup: int = 1, device: str = "cpu") -> dict[str, Timing]:
    """Time the works in turns (A B A B ...), so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(-warmup, repeats):
        for name, work in works.items():
            inputs = work.inputs()
            _synchronize(device)
            start = time.perf_counter()
            work.run(inputs)
            _synchronize(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_memory(work: Work, repeats: int = 2, device: str = "cpu") -> int:
    """Return the highest memory that ``work`` takes beyond what is held now [bytes].

    On the CPU this is the resident set of the whole process, so measure each variant in a process of its own. The
    second repeat counts too: an optimiser's state is made in the first.
    """
    inputs = [work.inputs() for _ in range(repeats)]
    gc.collect()
    if device == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        _reset_peak()
        before = _peak_resident()
    for item in inputs:
        work.run(item)
    _synchronize(device)
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident()) - before


def operations(function: Callable[[], Any]) -> int:
    """Return the floating point operations of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        function()
    return counter.get_total_flops()


def _product(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * 2 * math.prod(query) * key[-2]  # scores, and what they weigh


def _attention_backward(_: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
    return 5 * 2 * math.prod(query) * key[-2]  # the scores again, and four gradients


_ATEN = torch.ops.aten
_UNCOUNTED = {  # what torch's own table leaves out
    _ATEN.addmm_: _product,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the most bytes of new tensors that live at one time; exact, and the same on every machine.

    What kernels allocate inside themselves is not seen.
    """
    with _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._know(args, new=False)
        out = func(*args, **(kwargs or {}))
        self._know(out, new=True)
        return out

    def _know(self, tree: Any, new: bool) -> None:
        for leaf in torch.utils._pytree.tree_leaves(tree):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            size = storage.nbytes() if new else 0
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def machine(device: str) -> dict[str, str]:
    """Say what the figures were measured on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        processor = match[1]
    facts = {
        "date": date.today().isoformat(),
        "processor": processor,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak() -> None:
    """Let the kernel forget the process's highest resident set (Linux; elsewhere it only ever grows)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int:
    if sys.platform == "linux":
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
