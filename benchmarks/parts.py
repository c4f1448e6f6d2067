"""Runs some parts of a benchmark that has several: `python -m benchmarks.NAME [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

from benchmarks.__main__ import line
from benchmarks.figures import Count, Figure

Run = Callable[..., Iterable[Figure | Count]]


def main(name: str, parts: Sequence[str], seed: int, run: Run) -> int:
    """The exit code: 1 when the premise of a count does not hold."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=__doc__)
    parser.add_argument("parts", nargs="*", default=parts, choices=parts)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--seed", type=int, default=seed)
    options = parser.parse_args()
    broken = False
    for figure in run(quick=options.quick, parts=options.parts, seed=options.seed):
        print(line(name, figure), flush=True)
        broken = broken or (isinstance(figure, Count) and bool(figure.broken))
    return int(broken)
