"""Runs the named benchmarks, or all of them, and prints ours, the peer's and the ratio."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict

from benchmarks.figures import Figure

NAMES = ("startup", "forecast", "once", "refetch", "training")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run, of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, for a check that they run")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    results: dict[str, list[Figure]] = {}
    for name in options.names or NAMES:
        results[name] = importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)
        if not options.json:
            for figure in results[name]:
                print(line(name, figure), flush=True)
    if options.json:
        listed = {name: [{**asdict(f), "ratio": f.ratio} for f in figures] for name, figures in results.items()}
        json.dump(listed, sys.stdout, indent=1)
        print()
    return 0


def line(name: str, figure: Figure) -> str:
    """One figure as two lines of at most 80 columns or so."""
    return (
        f"{name}: {figure.name}\n"
        f"  ours {figure.ours:.4g} {figure.unit}, {figure.peer_name} {figure.peer:.4g} {figure.unit}, "
        f"ratio {figure.ratio:.3g} ({figure.target})"
    )


if __name__ == "__main__":
    sys.exit(main())
