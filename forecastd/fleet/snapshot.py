"""The published state of the fleet: one immutable value that every request reads.

It is replaced after each tick and each forecast.

Invariant: the largest responses are stored as the bytes that are sent. Only ages are calculated per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecastd.fleet.forecast.fleet_forecast import FleetForecast


@dataclass(frozen=True)
class ServerView:
    """One server at a tick. `missing_ticks`: ticks that the model still needs to forecast it, 0 when it can.

    `state` is ready, warming or silent; `reason` explains it.
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
    """The fleet at `tick`. `forecast` is None before the first one, and may be of an earlier tick.

    `risk`: one JSON document per server, the worst first. `alerts`: the JSON document of `GET /alerts`.
    `forecast_rows`: the row of each server in the forecast.
    """

    tick: int
    servers: tuple[ServerView, ...] = ()
    risk: tuple[bytes, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    alerts: bytes = b'{"open":[],"recent":[]}'
    alert_counts: Mapping[str, int] = field(default_factory=lambda: {"open": 0, "critical": 0})
    forecast: FleetForecast | None = None
    forecast_rows: Mapping[str, int] = field(default_factory=dict)

    def count_states(self) -> dict[str, int]:
        """The number of servers in total and by state."""
        counts = {"total": len(self.servers), "ready": 0, "warming": 0, "silent": 0}
        for view in self.servers:
            counts[view.state] += 1
        return counts

    def model_for(self, server: str) -> str | None:
        """The model that forecast a server: `tft` or `heuristic`; None when it is not in the forecast."""
        row = self.forecast_rows.get(server)
        return None if row is None or self.forecast is None else self.forecast.models[row]
