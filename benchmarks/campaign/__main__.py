"""Runs parts of the campaign."""

import sys

from benchmarks.campaign import PARTS, SEED, run
from benchmarks.parts import main

if __name__ == "__main__":
    sys.exit(main("campaign", PARTS, SEED, run))
