"""The command line of a benchmark with several parts: `python -m benchmarks.NAME [PART...] [--quick] [--seed N]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.__main__ import format_figure
from benchmarks.figures import Figure, PremiseCount

Run = Callable[..., Iterable[Figure | PremiseCount]]


def main(name: str, parts: Sequence[str], seed: int, run: Run, extra_options: Mapping[str, str] | None = None) -> int:
    """Run the chosen parts; return the exit code, 1 when the premise of a count does not hold.

    `extra_options`: further options of this benchmark and their help; they are passed to `run`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=__doc__)
    parser.add_argument("parts", nargs="*", default=parts, choices=parts)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--seed", type=int, default=seed)
    for option, help_text in (extra_options or {}).items():
        parser.add_argument(f"--{option}", help=help_text)
    options = parser.parse_args()
    is_violated = False
    extra = {option: getattr(options, option) for option in extra_options or {}}
    for figure in run(quick=options.quick, parts=options.parts, seed=options.seed, **extra):
        print(format_figure(name, figure), flush=True)
        is_violated = is_violated or (isinstance(figure, PremiseCount) and bool(figure.violations))
    return int(is_violated)
