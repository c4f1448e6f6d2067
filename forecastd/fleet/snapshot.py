"""What is published: one immutable value that every request reads, replaced as a whole after each tick and each forecast.

The one thing to know before changing it: what is sent most often is kept as the bytes that are sent. Only ages are reckoned
when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecastd.fleet.forecast.fleet_forecast import FleetForecast


@dataclass(frozen=True)
class ServerView:
    """One server as it stood at a tick. `needs`: ticks that are missing until the model can forecast it, 0 when it can.

    `state` is ready, warming or silent; `reason` says why, in words.
    """

    server: str
    profile: str
    status: str
    state: str
    reason: str
    missing_ticks: int
    score: float
    level: str


@dataclass(frozen=True, eq=False)
class FleetSnapshot:
    """All that is known at `tick`. `forecast` is None before the first one, and may be of an earlier tick.

    `risk`: of each server, worst first, as JSON, with `summary`; `alerts` as JSON, with how many are open and critical.
    """

    tick: int
    servers: tuple[ServerView, ...] = ()
    risk: tuple[bytes, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    alerts: bytes = b'{"open":[],"recent":[]}'
    alert_counts: Mapping[str, int] = field(default_factory=lambda: {"open": 0, "critical": 0})
    forecast: FleetForecast | None = None
    forecast_rows: Mapping[str, int] = field(default_factory=dict)  # of each server in the forecast

    def count_states(self) -> dict[str, int]:
        """How many servers there are, and how many of them are ready, warming and silent."""
        counts = {"total": len(self.servers), "ready": 0, "warming": 0, "silent": 0}
        for view in self.servers:
            counts[view.state] += 1
        return counts

    def model_for(self, server: str) -> str | None:
        """What forecast a server: `tft` or `heuristic`; None when it is not in the forecast."""
        row = self.forecast_rows.get(server)
        return None if row is None or self.forecast is None else self.forecast.models[row]
