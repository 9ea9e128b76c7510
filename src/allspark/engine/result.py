"""The result of a finished run: result.json, one small file that tables are made of."""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from allspark.config.resolve import images_per_update
from allspark.config.schema import Config
from allspark.data.partitions import partition_of
from allspark.data.source import Source
from allspark.engine.recorder import RunState
from allspark.engine.run_folder import fingerprints
from allspark.errors import DataError
from allspark.methods.base import Method, deployed_name
from allspark.runtime.version import VERSION


def result_of(
    config: Config, source: Source, state: RunState, device: torch.device, processes: int, method: Method
) -> dict[str, Any]:
    """What RUN/result.json holds: scores from 0 to 1, times in seconds, memory in bytes.

    Args:
        config: of the run.
        source: its data set.
        state: where it ended.
        device: where it computed.
        processes: how many did.
        method: as it was trained.
    """
    images = images_per_update(config.data, config.optim.accumulate, processes, method.views)
    partition = partition_of(config.data.source, source)
    return {
        "method": config.method.name,
        "network": deployed_name(method),
        "encoder": config.model.encoder,
        "bottleneck": config.model.bottleneck,
        "seed": config.seed,
        "initial_weights": state.initial,
        "weights": state.weights,
        "data": config.data.source,
        "labeled": len(source.labeled),
        "unlabeled": len(source.unlabeled),
        "pseudo": len(source.pseudo),
        "lists": fingerprints(source),
        "family": None if partition is None else partition.family,
        "partition": None if partition is None else partition.name,
        "paper_miou": None if partition is None else partition.miou,
        "steps": state.step,
        "images_seen": state.step * images,
        "best_miou": state.best,
        "best_step": state.best_step,
        "last_miou": state.last,
        "warnings": state.warned,
        "pseudo_labels": state.pseudo,
        "train_seconds": state.seconds,
        "peak_memory": state.peak_memory,
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": {
            "allspark": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_result(run: Path) -> dict[str, Any] | None:
    """Return a run's result; None while it is not finished.

    Raises:
        DataError: the file is damaged.
    """
    path = run / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path}: damaged ({error}); remove it and go on with the run, which writes it again"
        ) from error
    if not isinstance(result, dict):
        raise DataError(f"{path}: damaged (no table); remove it and go on with the run, which writes it again")
    return result


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far [bytes]: tensors of the GPU, or everything that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not told by Python there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name(device: torch.device) -> str:
    """Name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
