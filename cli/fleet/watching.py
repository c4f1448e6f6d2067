"""Looks at a running fleet again and again, for `fleet top`. What goes wrong in between is shown above the last picture."""

from __future__ import annotations

from dataclasses import replace

from rich.console import RenderableType

from cli.fleet.asking import FleetService, NotRunning
from cli.fleet.told import Alerts, Forecasts, Risks, ServerForecast, Status, ask
from cli.fleet.top_screen import METRICS, Frame, TopScreen, shown_servers
from cli.screen import console
from forecastd.errors import NeedsHuman, RetryLater


class Watching:
    """Asks one service. `servers`: how many are shown, None for as many as fit."""

    def __init__(self, service: FleetService, servers: int | None) -> None:
        self._service, self._servers = service, servers
        self._last: Frame | None = None

    def first(self) -> RenderableType:
        """The first picture. Raises as `FleetService.get` does: where nothing can be shown, there is nothing to watch."""
        height = self._height()
        self._last = self._look(height)
        return TopScreen(self._last, height)

    def screen(self) -> RenderableType:
        """The newest picture, or the last one with the reason why there is none."""
        height = self._height()
        try:
            self._last = self._look(height)
        except (NotRunning, RetryLater, NeedsHuman) as error:
            if self._last is None:
                raise
            return TopScreen(replace(self._last, trouble=str(error)), height)
        return TopScreen(self._last, height)

    def _look(self, height: int | None) -> Frame:
        service = self._service
        status = ask(service, Status, "/status")
        risks = ask(service, Risks, "/risk", top=self._servers or shown_servers(height))
        alerts = ask(service, Alerts, "/alerts")
        return Frame(service.name, status, risks, alerts, self._forecasts(risks))

    def _forecasts(self, risks: Risks) -> dict[str, ServerForecast]:
        """Those of the servers that are shown; none while there are none, or while one of the servers is leaving."""
        if not risks.servers:
            return {}
        names = ",".join(risk.server for risk in risks.servers)
        try:
            found = ask(
                self._service, Forecasts, "/forecast", servers=names, metrics=",".join(METRICS), levels="0.5,0.9"
            )
        except (RetryLater, NeedsHuman):
            return {}
        return {one.server: one for one in found.forecasts}

    @staticmethod
    def _height() -> int | None:
        screen = console()
        return screen.height if screen.is_terminal else None
