"""Runs the named benchmarks, or all of them, and prints ours, the peer's and the ratio, or what was counted.

Ends with 1 when the premise of a count does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict

from benchmarks.figures import Count, Figure

NAMES = ("startup", "forecast", "once", "refetch", "training", "supervise", "daemon", "campaign", "fleet")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run, of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, for a check that they run")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--data", metavar="CSV", help="fleet: real metrics to forecast too (series, timestamp, value)")
    parser.add_argument(
        "--others", metavar="PYTHON", help="fleet: the interpreter that has neuralforecast and darts, if not this one"
    )
    options = parser.parse_args()
    more = {"fleet": {"data": options.data, "others": options.others}}
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    results: dict[str, list[Figure | Count]] = {}
    for name in options.names or NAMES:
        results[name] = []
        for figure in importlib.import_module(f"benchmarks.{name}").run(quick=options.quick, **more.get(name, {})):
            results[name].append(figure)
            if not options.json:
                print(line(name, figure), flush=True)
    if options.json:
        listed = {name: [as_json(figure) for figure in figures] for name, figures in results.items()}
        json.dump(listed, sys.stdout, indent=1)
        print()
    return int(any(isinstance(figure, Count) and figure.broken for found in results.values() for figure in found))


def as_json(figure: Figure | Count) -> dict[str, object]:
    """One figure's fields."""
    return (
        {**asdict(figure), "ratio": figure.ratio, "met": figure.met} if isinstance(figure, Figure) else asdict(figure)
    )


def line(name: str, figure: Figure | Count) -> str:
    """One figure as two lines of at most 80 columns or so; a count has one line each, and its evidence."""
    if isinstance(figure, Count):
        counts = [f"  {what}: {number}" for what, number in figure.counts.items()]
        verdict = [f"  BROKEN: {evidence}" for evidence in figure.broken] or [f"  holds: {figure.premise}"]
        return "\n".join([f"{name}: {figure.name}", *counts, *verdict])
    met = {True: ": ok", False: ": MISSED", None: ""}[figure.met]
    return (
        f"{name}: {figure.name}\n"
        f"  ours {figure.ours:.4g} {figure.unit}, {figure.peer_name} {figure.peer:.4g} {figure.unit}, "
        f"ratio {figure.ratio:.3g} ({figure.target}){met}"
    )


if __name__ == "__main__":
    sys.exit(main())
