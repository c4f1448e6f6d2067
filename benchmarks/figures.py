"""What a benchmark gives: a figure of ours, the peer's, and what is aimed at."""

from __future__ import annotations

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
