"""What each part of a training step takes, and the floors below which no step can go.

    python benchmarks/shares.py mit-b5 --crop 513 --classes 21 --images 4

Arithmetic: the operations of matrix products and convolutions, at the rate that the best library here reaches on a
large product. Bytes: what autograd keeps, written once and read once, and five passes over the weights (weight and
momentum read and written, gradient written), at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is no installed package

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from allspark.host_memory import keep_freed_memory
from allspark.models.products import product as fast_product
from benchmarks.measure import machine, operations
from benchmarks.networks import step_case

PARTS = ("encoder", "bottleneck", "head")


class Clock:
    """Seconds in each part of a network, forward without and with gradient, and backward."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._began: dict[str, float] = {}
        self._mark = 0.0
        for name, module in parts.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._began.update({name: time.perf_counter()}))
            module.register_forward_hook(lambda _, args, out, name=name: self._forward(name, args, out))

    def backward_begins(self) -> None:
        """Call it right before ``loss.backward()``."""
        self._mark = time.perf_counter()

    def _forward(self, name: str, args: Any, out: Any) -> None:
        kind = "forward" if torch.is_grad_enabled() else "eval pass"
        self.seconds[name, kind] += time.perf_counter() - self._began[name]
        if kind == "forward":
            above = {"head": "losses", "bottleneck": "head", "encoder": "bottleneck"}[name]
            tensor = out if isinstance(out, Tensor) else _tensors(out)[-1]
            tensor.register_hook(lambda _: self._lap(above))

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name, "backward"] += now - self._mark
        self._mark = now

    def backward_ends(self) -> None:
        """Call it right after ``loss.backward()``."""
        self._lap("encoder")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def shares(
    variant: str, encoder: str, crop: int, classes: int, images: int
) -> tuple[dict[tuple[str, str], float], float]:
    """Seconds of each part and of the whole step, in the third step."""
    work: Any = step_case(encoder, crop, images, classes).variants[variant]("cpu")
    model = _closed_over(work.function)
    if variant == "product":
        network = model.segmenter
        parts = {"encoder": network.encoder, "bottleneck": network.bottleneck, "head": network.decoder}
    else:
        parts = {"encoder": model.backbone, "bottleneck": model.decoder["allspark"], "head": model.decoder["decoder"]}
    clock = Clock(parts)
    original = Tensor.backward

    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        clock.backward_begins()
        original(self, *args, **kwargs)
        clock.backward_ends()

    Tensor.backward = backward  # type: ignore[method-assign]
    try:
        for _ in range(3):
            inputs = work.inputs()
            clock.seconds.clear()
            start = time.perf_counter()
            work.run(inputs)
            total = time.perf_counter() - start
    finally:
        Tensor.backward = original  # type: ignore[method-assign]
    return dict(clock.seconds), total


def _closed_over(function: Callable[..., Any]) -> Any:
    """The network that a case's function trains."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return next(value for value in cells if isinstance(value, nn.Module))


def floors(encoder: str, crop: int, classes: int, images: int) -> tuple[float, float]:
    """Operations, and bytes that have to move, of one step of the product."""
    work: Any = step_case(encoder, crop, images, classes).variants["product"]("cpu")
    model = _closed_over(work.function)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = work.inputs()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        count = operations(lambda: work.run(inputs))
    return count, 2 * sum(kept.values()) + 5 * weights


def rates() -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second of a large copy (read and written)."""
    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    target = torch.empty(2**26)
    source = torch.randn(2**26)
    best = [float("inf")] * 2
    for _ in range(5):
        for i, function in enumerate((lambda: fast_product(a, b), lambda: target.copy_(source))):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return 2 * 4096**3 / best[0], 2 * 4 * 2**26 / best[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What each part of a training step takes.")
    parser.add_argument("encoder")
    parser.add_argument("--crop", type=int, default=513)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--images", type=int, default=4, help="half of them labelled")
    parser.add_argument("--variant", action="append", choices=("textbook", "product"))
    args = parser.parse_args()
    size = (args.encoder, args.crop, args.classes, args.images)
    facts = ", ".join(f"{key} {value}" for key, value in machine("cpu").items())
    table = Table(title=f"{args.encoder}, {args.crop} px, {args.classes} classes, {args.images} images", caption=facts)
    for column in ("", "part", "eval pass [s]", "forward [s]", "backward [s]", "share"):
        table.add_column(column, justify="left" if column in ("", "part") else "right")
    for variant in args.variant or ("textbook", "product"):
        if variant == "product":
            keep_freed_memory()
        seconds, total = shares(variant, *size)
        for part in (*PARTS, "losses"):
            values = [seconds.get((part, kind), 0.0) for kind in ("eval pass", "forward", "backward")]
            table.add_row(variant, part, *(f"{value:.2f}" for value in values), f"{sum(values) / total:.0%}")
        rest = total - sum(seconds.values())
        table.add_row(variant, "forward of losses, optimiser", "", f"{rest:.2f}", "", f"{rest / total:.0%}")
        table.add_row(variant, "step", "", f"{total:.2f}", "", "")
    count, size_in_bytes = floors(*size)
    speed, bandwidth = rates()
    table.add_row(
        "floor", f"arithmetic: {count / 1e9:.0f} GFLOP at {speed / 1e9:.0f}/s", "", f"{count / speed:.2f}", "", ""
    )
    text = f"bytes: {size_in_bytes / 1e9:.1f} GB at {bandwidth / 1e9:.0f}/s"
    table.add_row("floor", text, "", f"{size_in_bytes / bandwidth:.2f}", "", "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
