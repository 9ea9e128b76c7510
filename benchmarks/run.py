"""Measure time and peak memory of the product against plain versions, and say so in a table.

    python benchmarks/run.py [--quick] [--part NAME ...] [--device cpu|cuda] [--repeats N] [--json FILE]

Every variant of a case is measured in turns (A B C A B C ...), each time in a new process, so that a slow moment of the
machine meets all of them and no memory is shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is no installed package

import torch
from rich.console import Console
from rich.table import Table

from allspark.host_memory import keep_freed_memory
from benchmarks.cases import PARTS, Case, all_cases
from benchmarks.measure import MB, machine, measure


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    cases = all_cases(args.quick, args.part or PARTS)
    if args.worker is not None:
        _work(cases, args)
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    facts = machine(args.device)
    table = _table(facts)
    results = []
    for case in cases:
        console.print(f"[dim]{case.part}: {case.name} ...[/dim]")
        results.append(_measure(case, args))
        for row in _rows(case, results[-1]):
            table.add_row(*row)
        if args.json is not None:  # after each case, so that a stopped run keeps what it has
            args.json.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory of the product against plain versions.")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that everything runs")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this part; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--turns", type=int, help="turns of each case, instead of its own number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--worker", nargs=3, metavar=("CASE", "VARIANT", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(cases: list[Case], args: argparse.Namespace) -> None:
    """One turn of one variant, in a process of its own; prints what it measured."""
    name, variant, count = args.worker
    case = next(case for case in cases if case.name == name)
    if variant.startswith("product"):
        keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    turn = measure(case.variants[variant](args.device), case.repeats, count=count == "1", device=args.device)
    print(json.dumps(asdict(turn)))


def _measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in case.variants}
    for number in range(args.turns or case.turns):
        for variant in case.variants:
            turns[variant].append(_turn(case, variant, args, count=number == 0))
    return {
        "part": case.part,
        "case": case.name,
        "goal": asdict(case.goal),
        "variants": {
            variant: {
                "median_s": statistics.median(second for turn in found for second in turn["seconds"]),
                "seconds": [turn["seconds"] for turn in found],
                "peak_bytes": statistics.median(turn["peak_bytes"] for turn in found),
                "operations": found[0]["operations"],
            }
            for variant, found in turns.items()
        },
    }


def _turn(case: Case, variant: str, args: argparse.Namespace, *, count: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--threads", str(args.threads), "--device", args.device, "--part", case.part]
    command += ["--quick"] * args.quick + ["--worker", case.name, variant, str(int(count))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{case.name}, {variant}: {result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def _table(facts: dict[str, str]) -> Table:
    caption = ", ".join(f"{key} {value}" for key, value in facts.items())
    table = Table(title="Product against plain versions", caption=caption)
    for column in ("part", "case", "variant"):
        table.add_column(column)
    for column in ("time [s]", "units/s", "product faster", "peak [MB]", "product's share", "GFLOP"):
        table.add_column(column, justify="right")
    return table


def _rows(case: Case, result: dict[str, Any]) -> list[list[str]]:
    variants = result["variants"]
    product = variants["product"]
    rows = []
    for number, (name, figures) in enumerate(variants.items()):
        speed = figures["median_s"] / product["median_s"]
        share = product["peak_bytes"] / max(1, figures["peak_bytes"])
        goal = case.goal if number == 0 else None
        rows.append(
            [
                case.part,
                case.name,
                name,
                f"{figures['median_s']:.3f}",
                f"{case.units[0] / figures['median_s']:.2f} {case.units[1]}" if case.units else "",
                "" if name == "product" else f"{speed:.2f}" + _verdict(goal and goal.speed, speed, 1),
                f"{figures['peak_bytes'] / MB:.0f}",
                "" if name == "product" else f"{share:.2f}" + _verdict(goal and goal.memory, share, -1),
                f"{figures['operations'] / 1e9:.0f}",
            ]
        )
    return rows


def _verdict(goal: float | None, value: float, sign: int) -> str:
    if goal is None:
        return ""
    met = sign * (value - goal) >= 0
    return f" (goal {'>=' if sign > 0 else '<='} {goal:g}: {'met' if met else 'missed'})"


if __name__ == "__main__":
    main()
