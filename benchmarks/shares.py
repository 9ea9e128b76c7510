"""What each part of a training step takes, and the floors below which no step can go.

    python benchmarks/shares.py

Arithmetic: the operations of matrix products and convolutions, at the rate that the best library here reaches on a
large product. Bytes: what autograd keeps, written once and read once, and five passes over the weights (weight and
momentum read and written, gradient written), at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is no installed package

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from allspark.kernels.matmul import product as fast_product
from allspark.models.segmenter import Segmenter
from allspark.runtime.host_memory import keep_freed_memory, restart_without_caches
from benchmarks.measure import machine, operations
from benchmarks.networks import TrainingStep, step_name, step_variants
from benchmarks.textbook import TextbookSegmenter

PARTS, KINDS = ("encoder", "bottleneck", "head", "losses", "optimiser"), ("eval pass", "forward", "backward")
NETWORKS = tuple(
    (encoder, crop, classes, 2)
    for encoder in ("mit-b0", "mit-b2", "mit-b5")
    for crop, classes in ((513, 21), (513, 81), (801, 19))
)


class Clock:
    """Seconds in each part of a network: eval pass (forward without gradient), forward, backward."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._began: dict[str, float] = {}
        self._mark = 0.0
        for name, module in parts.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._began.update({name: time.perf_counter()}))
            module.register_forward_hook(lambda _, args, out, name=name: self._forward_ends(name, out))

    def start_backward(self) -> None:
        """Backward goes the parts in reverse order, beginning with the losses."""
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """The backward pass of a part is over."""
        now = time.perf_counter()
        self.seconds[name, "backward"] += now - self._mark
        self._mark = now

    def _forward_ends(self, name: str, out: Any) -> None:
        kind = "forward" if torch.is_grad_enabled() else "eval pass"
        self.seconds[name, kind] += time.perf_counter() - self._began[name]
        if kind == "forward":  # the gradient of its last output is there: what stands above it is done
            above = {"head": "losses", "bottleneck": "head", "encoder": "bottleneck"}[name]
            tree_leaves(out)[-1].register_hook(lambda _: self.lap(above))


def parts_of(network: Segmenter | TextbookSegmenter) -> dict[str, nn.Module]:
    """The three parts of a network, by name."""
    if isinstance(network, TextbookSegmenter):
        return {
            "encoder": network.backbone,
            "bottleneck": network.decoder["allspark"],
            "head": network.decoder["decoder"],
        }
    assert network.bottleneck is not None
    return {"encoder": network.encoder, "bottleneck": network.bottleneck, "head": network.decoder}


def shares(step: TrainingStep) -> tuple[dict[tuple[str, str], float], float]:
    """Seconds of each part, and of the whole step, in the third step."""
    clock = Clock(parts_of(step.model))
    total = 0.0
    for _ in range(3):
        batch = step.inputs()
        clock.seconds.clear()
        start = time.perf_counter()
        loss = step.loss(batch)
        clock.seconds["losses", "forward"] = time.perf_counter() - start - sum(clock.seconds.values())
        clock.start_backward()
        torch.autograd.backward(loss)
        clock.lap("encoder")
        update = time.perf_counter()
        step.update()
        end = time.perf_counter()
        clock.seconds["optimiser", "forward"] = end - update
        total = end - start
    return dict(clock.seconds), total


def floors(step: TrainingStep) -> tuple[float, float]:
    """Operations, and bytes that have to move, of one step."""
    weights = sum(p.numel() * p.element_size() for p in step.model.parameters())
    own = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = step.inputs()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        count = operations(lambda: step.run(batch))
    return count, 2 * sum(kept.values()) + 5 * weights


def rates() -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second of a large copy (read and written)."""
    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    target = torch.empty(2**28)
    source = torch.randn(2**28)
    best = [float("inf")] * 2
    for _ in range(5):
        for i, function in enumerate((lambda: fast_product(a, b), lambda: target.copy_(source))):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return 2 * 4096**3 / best[0], 2 * 4 * 2**28 / best[1]


def main() -> None:
    """Print one network's shares as JSON, or the table of all."""
    parser = argparse.ArgumentParser(description="What each part of a training step takes.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--one", nargs=5, metavar=("ENCODER", "CROP", "CLASSES", "IMAGES", "VARIANT"), help="as JSON")
    args = parser.parse_args()
    if args.one is not None:
        encoder, crop, classes, images, variant = args.one
        print(json.dumps(_one(step_variants(encoder, int(crop), int(images), int(classes))[variant], variant)))
        return
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    speed, bandwidth = rates()
    facts = ", ".join(f"{key} {value}" for key, value in machine("cpu").items())
    lines = [
        "# What each part of a training step takes",
        "",
        f"Written by `python benchmarks/shares.py`: {facts}; products at {speed / 1e9:.0f} GFLOP/s, copies at "
        f"{bandwidth / 1e9:.0f} GB/s.",
        "",
        "Seconds of eval pass + forward + backward, and their share of the step.",
        "",
        f"| network | variant | {' | '.join(PARTS)} | step [s] | floor, arithmetic [s] | floor, bytes [s] |",
        "|---" * 2 + "|--:" * (len(PARTS) + 3) + "|",
    ]
    for network in NETWORKS:
        for variant in ("textbook", "product"):
            lines.append(_row(network, variant, speed, bandwidth))
            print(lines[-1], file=sys.stderr)
            if args.out is not None:  # after each row, so that a stopped run keeps what it has
                args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _one(build: Callable[[str], TrainingStep], variant: str) -> dict[str, Any]:
    if variant == "product":
        restart_without_caches()
        keep_freed_memory()
    step = build("cpu")
    seconds, total = shares(step)
    count, size = floors(step)
    parts = {part: [seconds.get((part, kind), 0.0) for kind in KINDS] for part in PARTS}
    return {"parts": parts, "total": total, "operations": count, "bytes": size}


def _row(network: tuple[str, int, int, int], variant: str, speed: float, bandwidth: float) -> str:
    command = [sys.executable, __file__, "--one", *map(str, network), variant]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # alone: no memory is shared
    found = json.loads(done.stdout)
    cells = []
    for values in found["parts"].values():
        times = " + ".join(f"{value:.2f}" for value in values if value)
        cells.append(f"{times} ({sum(values) / found['total']:.0%})")
    encoder, crop, classes, images = network
    name = step_name(encoder, crop, images, classes)
    sums = [found["total"], found["operations"] / speed, found["bytes"] / bandwidth]
    return "| " + " | ".join([name, variant, *cells, *(f"{value:.2f}" for value in sums)]) + " |"


if __name__ == "__main__":
    main()
