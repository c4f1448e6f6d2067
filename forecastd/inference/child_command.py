"""The command line that starts a child. Supervision appends the arguments of `forecastd.inference.child`."""

from __future__ import annotations

import sys


def child_command() -> tuple[str, ...]:
    """Run the child's main in this interpreter. `-P` keeps the working directory out of the child's import path."""
    return sys.executable, "-P", "-m", "forecastd.inference.child"
