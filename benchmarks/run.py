"""Measure the product against the textbook version: ``python benchmarks/run.py``.

Time: all variants in this process, in turns, median. Memory: each variant in a process of its own on the CPU, beyond
imports, weights and inputs; in this process on a GPU. Operations: of matrix products and convolutions.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is no installed package

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import PARTS, Case, all_cases
from benchmarks.measure import MB, interleaved, machine, operations, peak_memory


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    cases = all_cases(args.quick, args.part or PARTS)
    if args.worker is not None:
        name, variant = args.worker
        case = next(case for case in cases if case.name == name)
        print(*_count(case, variant, args.device))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    facts = machine(args.device)
    table = _table(facts)
    rows = []
    for case in cases:
        console.print(f"[dim]{case.part}: {case.name} ...[/dim]")
        rows.append(_measure(case, args))
        for row in _rows(case, rows[-1]):
            table.add_row(*row)
    console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": facts, "results": rows}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory of the product against the textbook version.")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that everything runs")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this part; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, help="repeats of each case, instead of its own number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # measures one variant's memory
    return parser.parse_args()


def _measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    counts = {name: _memory_and_operations(case, name, args) for name in case.variants}
    torch.manual_seed(0)
    works = {name: build(args.device) for name, build in case.variants.items()}
    timings = interleaved(works, args.repeats or case.repeats, device=args.device)
    del works
    gc.collect()
    return {
        "part": case.part,
        "case": case.name,
        "goal": {"speed": case.goal.speed, "memory": case.goal.memory},
        "variants": {
            name: {
                "median_s": timings[name].median,
                "seconds": timings[name].seconds,
                "peak_bytes": memory,
                "operations": flops,
            }
            for name, (memory, flops) in counts.items()
        },
    }


def _memory_and_operations(case: Case, variant: str, args: argparse.Namespace) -> tuple[int, int]:
    if args.device == "cuda":
        return _count(case, variant, "cuda")
    command = [sys.executable, __file__, "--threads", str(args.threads), "--device", "cpu"]
    command += ["--quick"] * args.quick + ["--worker", case.name, variant]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{case.name}, {variant}: {result.stderr}")
    memory, flops = result.stdout.split()[-2:]
    return int(memory), int(flops)


def _count(case: Case, variant: str, device: str) -> tuple[int, int]:
    torch.manual_seed(0)
    work = case.variants[variant](device)
    memory = peak_memory(work, device=device)
    inputs = work.inputs()
    return memory, operations(lambda: work.run(inputs))


def _table(facts: dict[str, str]) -> Table:
    caption = ", ".join(f"{key} {value}" for key, value in facts.items())
    table = Table(title="Product against textbook", caption=caption)
    for column in ("part", "case", "variant"):
        table.add_column(column)
    for column in ("time [s]", "times faster", "peak [MB]", "share of peak", "GFLOP"):
        table.add_column(column, justify="right")
    return table


def _rows(case: Case, result: dict[str, Any]) -> list[list[str]]:
    variants = result["variants"]
    product = variants["product"]
    rows = []
    for name, figures in variants.items():
        speed = figures["median_s"] / product["median_s"]
        share = product["peak_bytes"] / figures["peak_bytes"]
        last = name == "product"
        rows.append(
            [
                case.part,
                case.name,
                name,
                f"{figures['median_s']:.3f}",
                "" if last else f"{speed:.2f}" + _verdict(name, case.goal.speed, speed, 1),
                f"{figures['peak_bytes'] / MB:.0f}",
                "" if last else f"{share:.2f}" + _verdict(name, case.goal.memory, share, -1),
                f"{figures['operations'] / 1e9:.0f}",
            ]
        )
    return rows


def _verdict(variant: str, goal: float | None, value: float, sign: int) -> str:
    """Goals are against the plain textbook version."""
    if goal is None or variant != "textbook":
        return ""
    met = sign * (value - goal) >= 0
    return f" (goal {'>=' if sign > 0 else '<='} {goal:g}: {'met' if met else 'missed'})"


if __name__ == "__main__":
    main()
