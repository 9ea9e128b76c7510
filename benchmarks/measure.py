"""Time, peak memory, operations and bytes of a piece of work."""

from __future__ import annotations

import atexit
import gc
import math
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, Protocol

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


@dataclass
class Command:
    """A whole command, in a process of its own, whose memory counts."""

    arguments: Sequence[str]
    peak_bytes: int = 0

    def inputs(self) -> None:
        """There are none."""

    def run(self, inputs: None) -> None:
        """Run it to its end.

        Raises:
            RuntimeError: it failed.
        """
        process = subprocess.Popen(self.arguments, stdout=subprocess.DEVNULL)
        while process.poll() is None:  # what the kernel says in the end would include this process before the fork
            self.peak_bytes = max(self.peak_bytes, _peak_resident(process.pid))
            time.sleep(0.002)
        if process.returncode:
            raise RuntimeError(f"{' '.join(self.arguments)}: exit status {process.returncode}")


@dataclass(frozen=True)
class Turn:
    """What one process measured of one variant."""

    seconds: tuple[float, ...]
    peak_bytes: int
    operations: int | None  # None: not counted in this turn


def measure(work: Work, warmups: int, repeats: int, *, count: bool, device: str = "cpu") -> Turn:
    """Run a work ``warmups`` times, then ``repeats`` times with a clock.

    The peak is the highest memory beyond what is held now [bytes]. On the CPU that is the resident set of the whole
    process, so each turn has a process of its own. Warm-ups count too: an optimiser's state is made in them.
    """
    inputs = work.inputs()
    gc.collect()
    before = _start_peak(device)
    seconds = []
    for _ in range(warmups + repeats):
        _synchronize(device)
        start = time.perf_counter()
        work.run(inputs)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = work.peak_bytes if isinstance(work, Command) else _peak(device) - before
    return Turn(tuple(seconds[warmups:]), peak, operations(lambda: work.run(inputs)) if count else None)


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


def _linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _convolution_backward(
    grad_out: Sequence[int], _x: Any, weight: Sequence[int], *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    """Torch counts a grouped convolution's backward as if every channel met every other."""
    wanted = rest[7][:2]  # of input and weight; after bias sizes, stride, padding, dilation, ..., groups
    return 2 * math.prod(grad_out) * math.prod(weight[1:]) * sum(wanted)


_ATEN = torch.ops.aten
_UNCOUNTED = {  # what torch's own table leaves out or has wrong
    torch.ops.mkldnn._linear_pointwise: _linear,
    _ATEN.convolution_backward: _convolution_backward,
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


def temporary_folder() -> Path:
    """A folder that goes with this process."""
    folder = tempfile.mkdtemp(prefix="allspark-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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


def _start_peak(device: str) -> int:
    if device == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _reset_peak()
    return _peak_resident()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident()


def _reset_peak() -> None:
    """Let the kernel forget the process's highest resident set (Linux; elsewhere it only ever grows)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident(process: int | Literal["self"] = "self") -> int:
    if sys.platform == "linux":
        match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
        return int(match[1]) * 1024 if match else 0  # one that has just ended has none
    if process != "self":
        return 0  # other systems do not say
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
