"""What a finished run came to: result.json, one small file that tables are made of."""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

import allspark
from allspark.data.partitions import partition_of
from allspark.engine.run_folder import fingerprints
from allspark.engine.session import Session
from allspark.errors import DataError
from allspark.files import atomic_write


def write_result(session: Session) -> None:
    """Write RUN/result.json: scores from 0 to 1, times in seconds, memory in bytes."""
    config, state, source = session.config, session.state, session.source
    images = config.data.batch_labeled + config.data.batch_unlabeled * session.method.wants_unlabeled
    partition = partition_of(config.data.source, source)
    result = {
        "method": config.method.name,
        "encoder": config.model.encoder,
        "seed": config.seed,
        "initial_weights": state.initial,
        "data": config.data.source,
        "labeled": len(source.labeled),
        "unlabeled": len(source.unlabeled),
        "lists": fingerprints(source),
        "family": None if partition is None else partition.family,
        "partition": None if partition is None else partition.name,
        "paper_miou": None if partition is None else partition.miou,
        "steps": state.step,
        "images_seen": state.step * images * config.optim.accumulate * session.accelerator.num_processes,
        "best_miou": state.best,
        "best_step": state.best_step,
        "last_miou": state.last,
        "warnings": state.warned,
        "train_seconds": state.seconds,
        "peak_memory": state.peak_memory,
        "device": device_name(session.accelerator.device),
        "processes": session.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": {
            "allspark": allspark.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with atomic_write(session.out / "result.json", "w") as file:
        json.dump(result, file, indent=2)


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
