"""The time of `--help`, next to importing Click, which is the minimum for any Click program."""

from __future__ import annotations

from benchmarks.figures import Figure
from benchmarks.processes import alternate, measure, python


def run(*, quick: bool) -> list[Figure]:
    """Wall time of `submit_prediction.py --help` and of `python -c "import click"`, fresh processes."""
    ours, peer = alternate(
        lambda: measure(python("submit_prediction.py", "--help")),
        lambda: measure(python("-c", "import click")),
        runs=3 if quick else 15,
    )
    name = "--help against import click"
    return [Figure(name, 1000 * ours.seconds, 1000 * peer.seconds, "ms", "import click", "at most 3x: ratio >= 0.33")]
