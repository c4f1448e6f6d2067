"""Runs some parts of a benchmark that has several: `python -m benchmarks.NAME [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.__main__ import line
from benchmarks.figures import Count, Figure

Run = Callable[..., Iterable[Figure | Count]]


def main(name: str, parts: Sequence[str], seed: int, run: Run, more: Mapping[str, str] | None = None) -> int:
    """The exit code: 1 when the premise of a count does not hold.

    `more`: options of this benchmark alone, by name with their help; they are given to `run` as they are.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=__doc__)
    parser.add_argument("parts", nargs="*", default=parts, choices=parts)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--seed", type=int, default=seed)
    for option, told in (more or {}).items():
        parser.add_argument(f"--{option}", help=told)
    options = parser.parse_args()
    broken = False
    given = {option: getattr(options, option) for option in more or {}}
    for figure in run(quick=options.quick, parts=options.parts, seed=options.seed, **given):
        print(line(name, figure), flush=True)
        broken = broken or (isinstance(figure, Count) and bool(figure.broken))
    return int(broken)
