"""Looks at a running fleet again and again, for `fleet top`. What goes wrong in between is shown above the last picture."""

from __future__ import annotations

from dataclasses import replace

from rich.console import RenderableType

from cli.fleet.client import FleetClient, FleetNotRunning
from cli.fleet.schemas import AlertsView, ForecastsView, RisksView, ServerForecastView, StatusView, fetch
from cli.fleet.top_screen import METRICS, TopData, TopScreen, server_capacity
from cli.rows import console
from forecastd.errors import NeedsHuman, RetryLater


class TopMonitor:
    """Asks one service. `servers`: how many are shown, None for as many as fit."""

    def __init__(self, client: FleetClient, servers: int | None) -> None:
        self._client, self._servers = client, servers
        self._last_data: TopData | None = None

    def first_screen(self) -> RenderableType:
        """The first picture. Raises as `FleetService.get` does: where nothing can be shown, there is nothing to watch."""
        height = self._height()
        self._last_data = self._fetch(height)
        return TopScreen(self._last_data, height)

    def next_screen(self) -> RenderableType:
        """The newest picture, or the last one with the reason why there is none."""
        height = self._height()
        try:
            self._last_data = self._fetch(height)
        except (FleetNotRunning, RetryLater, NeedsHuman) as error:
            if self._last_data is None:
                raise
            return TopScreen(replace(self._last_data, error=str(error)), height)
        return TopScreen(self._last_data, height)

    def _fetch(self, height: int | None) -> TopData:
        client = self._client
        status = fetch(client, StatusView, "/status")
        risks = fetch(client, RisksView, "/risk", top=self._servers or server_capacity(height))
        alerts = fetch(client, AlertsView, "/alerts")
        return TopData(client.name, status, risks, alerts, self._forecasts(risks))

    def _forecasts(self, risks: RisksView) -> dict[str, ServerForecastView]:
        """Those of the servers that are shown; none while there are none, or while one of the servers is leaving."""
        if not risks.servers:
            return {}
        names = ",".join(risk.server for risk in risks.servers)
        try:
            response = fetch(
                self._client, ForecastsView, "/forecast", servers=names, metrics=",".join(METRICS), levels="0.5,0.9"
            )
        except (RetryLater, NeedsHuman):
            return {}
        return {forecast.server: forecast for forecast in response.forecasts}

    @staticmethod
    def _height() -> int | None:
        screen = console()
        return screen.height if screen.is_terminal else None
