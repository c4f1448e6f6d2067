"""Runs some parts of the benchmark of the daemon: `python -m benchmarks.daemon [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import sys

from benchmarks.daemon import PARTS, SEED, run
from benchmarks.parts import main

if __name__ == "__main__":
    sys.exit(main("daemon", PARTS, SEED, run))
