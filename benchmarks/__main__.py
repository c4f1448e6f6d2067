"""Run the named benchmarks, or all. Prints our figure, the peer's and the ratio, or counts and whether their premise holds.

Exits with 1 when the premise of a count does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.figures import Figure, PremiseCount

NAMES = ("startup", "forecast", "once", "refetch", "training", "supervise", "daemon", "campaign", "fleet")
# What `--ci` runs, and of a benchmark with several parts which: about two minutes.
CI_PARTS: dict[str, tuple[str, ...]] = {
    "startup": (),
    "forecast": (),
    "once": (),
    "refetch": (),
    "training": (),
    "supervise": ("failover",),
    "campaign": ("kills", "race", "disk", "cost"),
    "fleet": ("forecast", "persistence"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run, of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, to check that the benchmarks run")
    parser.add_argument("--ci", action="store_true", help="the shortest form of all: --quick, and only some parts")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--data", metavar="CSV", help="fleet: also forecast these real metrics (series, timestamp, value)"
    )
    parser.add_argument(
        "--others",
        metavar="PYTHON",
        help="fleet: the Python interpreter that has neuralforecast and darts, if not this one",
    )
    options = parser.parse_args()
    extra_options: dict[str, dict[str, Any]] = {"fleet": {"data": options.data, "others": options.others}}
    if options.ci:
        for name, parts in CI_PARTS.items():
            if parts:
                extra_options.setdefault(name, {})["parts"] = parts
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmarks: {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    results: dict[str, list[Figure | PremiseCount]] = {}
    for name in options.names or (CI_PARTS if options.ci else NAMES):
        results[name] = []
        for figure in importlib.import_module(f"benchmarks.{name}").run(
            quick=options.quick or options.ci, **extra_options.get(name, {})
        ):
            results[name].append(figure)
            if not options.json:
                print(format_figure(name, figure), flush=True)
    if options.json:
        output = {name: [as_json(figure) for figure in figures] for name, figures in results.items()}
        json.dump(output, sys.stdout, indent=1)
        print()
    return int(
        any(isinstance(figure, PremiseCount) and figure.violations for group in results.values() for figure in group)
    )


def as_json(figure: Figure | PremiseCount) -> dict[str, object]:
    """The fields of one figure."""
    return (
        {**asdict(figure), "ratio": figure.ratio, "met": figure.is_met}
        if isinstance(figure, Figure)
        else asdict(figure)
    )


def format_figure(name: str, figure: Figure | PremiseCount) -> str:
    """One figure as two lines of about 80 columns; counts have one line each, followed by the evidence."""
    if isinstance(figure, PremiseCount):
        counts = [f"  {label}: {number}" for label, number in figure.counts.items()]
        verdict = [f"  BROKEN: {evidence}" for evidence in figure.violations] or [f"  holds: {figure.premise}"]
        return "\n".join([f"{name}: {figure.name}", *counts, *verdict])
    met = {True: ": ok", False: ": MISSED", None: ""}[figure.is_met]
    return (
        f"{name}: {figure.name}\n"
        f"  ours {figure.ours:.4g} {figure.unit}, {figure.peer_name} {figure.peer:.4g} {figure.unit}, "
        f"ratio {figure.ratio:.3g} ({figure.target}){met}"
    )


if __name__ == "__main__":
    sys.exit(main())
