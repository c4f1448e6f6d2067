"""Runs parts of the fleet benchmark: `python -m benchmarks.fleet [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import sys

from benchmarks.fleet import PARTS, SEED, run
from benchmarks.parts import main

EXTRA_OPTIONS = {
    "data": "a CSV of real metrics for the part quality (series, timestamp, value)",
    "others": "an interpreter that has neuralforecast and darts, if this one does not",
}

if __name__ == "__main__":
    sys.exit(main("fleet", PARTS, SEED, run, EXTRA_OPTIONS))
