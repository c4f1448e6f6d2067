"""The published state of the fleet: one immutable value that every request reads.

It is replaced after each tick and each forecast.

Invariant: the largest responses are stored as the bytes that are sent. Only ages are calculated per request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from forecastd.fleet.documents import AlertCounts, RiskSummary, ServerCounts, ServerStatus
from forecastd.fleet.forecast.fleet_forecast import FleetForecast


@dataclass(frozen=True, eq=False)
class FleetSnapshot:
    """The fleet at `tick`. `forecast` is None before the first one, and may be of an earlier tick.

    `servers`: without what changes between two ticks. `risk`: one JSON document per server, the worst first. `alerts`:
    the JSON document of `GET /alerts`. `forecast_rows`: the row of each server in the forecast.
    """

    tick: int
    servers: tuple[ServerStatus, ...] = ()
    risk: tuple[bytes, ...] = ()
    summary: RiskSummary = field(default_factory=RiskSummary)
    alerts: bytes = b'{"open":[],"recent":[]}'
    alert_counts: AlertCounts = field(default_factory=AlertCounts)
    forecast: FleetForecast | None = None
    forecast_rows: Mapping[str, int] = field(default_factory=dict)

    def count_states(self) -> ServerCounts:
        """The number of servers in total and by state."""
        states = Counter(server.state for server in self.servers)
        return ServerCounts(len(self.servers), states["ready"], states["warming"], states["silent"])

    def model_for(self, server: str) -> str | None:
        """The model that forecast a server: `tft` or `heuristic`; None when it is not in the forecast."""
        row = self.forecast_rows.get(server)
        return None if row is None or self.forecast is None else self.forecast.models[row]
