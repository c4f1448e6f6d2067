"""What a benchmark gives: a figure of ours beside the peer's and what is aimed at, or counts whose premise must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured comparison; `ratio` above 1 means ours is smaller (faster, leaner). `target` says what is aimed at."""

    name: str
    ours: float
    peer: float
    unit: str
    peer_name: str
    target: str

    @property
    def ratio(self) -> float:
        return self.peer / self.ours if self.ours else float("inf")

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio is what `target` asks for; None when it asks for none."""
        minimum = re.search(r"ratio >= ([\d.]+)", self.target)
        return self.ratio >= float(minimum[1]) if minimum else None


@dataclass(frozen=True)
class PremiseCount:
    """What a run counted, by what it is a count of. `broken`: the evidence against its premise, empty when that holds."""

    name: str
    counts: Mapping[str, int | float | str]
    premise: str
    violations: tuple[str, ...] = ()
