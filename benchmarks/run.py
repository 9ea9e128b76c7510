"""Measure time and peak memory of the product against plain versions, and say so in a table.

    python benchmarks/run.py [--quick] [--part NAME ...] [--device cpu|cuda] [--turns N] [--out FOLDER]

Every variant of a case is measured in turns (A B C A B C ...), each time in a new process, so that a slow moment of the
machine meets all of them and no memory is shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is no installed package

import torch
from rich.console import Console

from allspark.runtime.host_memory import keep_freed_memory, restart_without_caches
from benchmarks import commands, networks, pipelines
from benchmarks.cases import PARTS, Case
from benchmarks.measure import machine, measure
from benchmarks.report import table, write_report


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    cases = _cases(args.quick, args.part or PARTS)
    if args.worker is not None:
        _work(cases, args)
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    facts = machine(args.device)
    results: list[dict[str, Any]] = []
    for case in cases:
        console.print(f"[dim]{case.part}: {case.name} ...[/dim]")
        results.append(_measure(case, args))
        if args.out is not None:  # after each case, so that a stopped run keeps what it has
            write_report(args.out, facts, results)
    console.print(table(facts, results))


def _cases(quick: bool, parts: Sequence[str]) -> list[Case]:
    """All cases of some parts; ``quick`` has small ones that only show that everything runs."""
    cases = [*networks.cases(quick), *pipelines.cases(quick), *commands.cases()]
    return [case for case in cases if case.part in parts]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory of the product against plain versions.")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that everything runs")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this part; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--turns", type=int, help="turns of each case, instead of its own number")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write figures.json, README.md and curves here")
    parser.add_argument("--worker", nargs=3, metavar=("CASE", "VARIANT", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(cases: list[Case], args: argparse.Namespace) -> None:
    """One turn of one variant, in a process of its own; prints what it measured."""
    name, variant, count = args.worker
    case = next(case for case in cases if case.name == name)
    if variant.startswith("product"):  # as the command line does
        if case.part in ("step", "scaling"):
            restart_without_caches()
        keep_freed_memory()
    torch.manual_seed(0)
    device = "cpu" if case.part == "data" else args.device
    turn = measure(case.variants[variant](device), case.warmups, case.repeats, count=count == "1", device=device)
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
        "units": case.units,
        "growth": case.growth,
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


if __name__ == "__main__":
    main()
