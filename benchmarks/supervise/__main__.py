"""Runs some parts of the supervision benchmark."""

import sys

from benchmarks.parts import main
from benchmarks.supervise import PARTS, SEED, run

if __name__ == "__main__":
    sys.exit(main("supervise", PARTS, SEED, run))
