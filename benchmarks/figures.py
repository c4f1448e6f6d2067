"""Results of a benchmark: a figure with the peer's figure and a target, or counts with a premise that must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured comparison. `ratio` above 1: ours is smaller (faster, leaner). `target`: the aim, in words."""

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
        """Whether the ratio meets the target; None when the target names no ratio."""
        minimum = re.search(r"ratio >= ([\d.]+)", self.target)
        return self.ratio >= float(minimum[1]) if minimum else None


@dataclass(frozen=True)
class PremiseCount:
    """Counts of a run by name. `violations`: the evidence against the premise; empty when it holds."""

    name: str
    counts: Mapping[str, int | float | str]
    premise: str
    violations: tuple[str, ...] = ()
