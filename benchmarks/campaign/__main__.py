"""Runs some parts of the campaign: `python -m benchmarks.campaign [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.__main__ import line
from benchmarks.campaign import PARTS, SEED, run
from benchmarks.figures import Count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    broken = False
    for figure in run(quick=options.quick, parts=options.parts, seed=options.seed):
        print(line("campaign", figure), flush=True)
        broken = broken or (isinstance(figure, Count) and bool(figure.broken))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
