"""Where a run computes: the CPU or the GPU of each of its processes."""

from __future__ import annotations

import atexit
import os
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState

from allspark.config.schema import TrainConfig
from allspark.errors import ConfigError
from allspark.runtime.agreement import leave_group


def start_processes(train: TrainConfig, accumulate: int) -> Accelerator:
    """Accelerate's view of the machine, in which all processes have found each other; a second run may choose anew."""
    _require_environment()
    wanted, precision = train.device, train.precision
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but torch sees no GPU; use auto or cpu")
    on_cpu = wanted == "cpu" or not torch.cuda.is_available()
    place = int(os.environ.get("LOCAL_RANK") or "0")
    if not on_cpu and place >= torch.cuda.device_count():
        raise ConfigError(
            f"{place + 1} processes on this machine, but torch sees {torch.cuda.device_count()} GPUs; start one a GPU, "
            "or set train.device=cpu"
        )
    if on_cpu and precision == "fp16":
        raise ConfigError("train.precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    for harmless in ("`broadcast_buffers` is deprecated", "Grad strides do not match"):
        warnings.filterwarnings("ignore", message=harmless)  # of data parallelism
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    atexit.unregister(leave_group)
    atexit.register(leave_group)  # for programs other than the command line
    accelerator = Accelerator(
        mixed_precision=precision if precision in {"bf16", "fp16"} else "no",
        cpu=on_cpu,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats(accelerator.device)  # of a run before in the same program
    return accelerator


def _require_environment() -> None:
    """Refuse what launchers set if it is no number, or not whole."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name) or "0"
        if not value.isdecimal():
            raise ConfigError(f"the environment variable {name} is {value!r}, expected a number; unset it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if int(os.environ.get("WORLD_SIZE") or "1") > 1 and missing:
        raise ConfigError(
            f"the environment variable WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start with --processes, torchrun or accelerate launch"
        )


def require_compiler(device: torch.device) -> None:
    """Let torch.compile show on something small that it can work on this machine.

    Raises:
        ConfigError: it cannot; its reason is in the message.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second

    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"train.compile does not work on this machine ({reason.strip()}); set it to false") from error
