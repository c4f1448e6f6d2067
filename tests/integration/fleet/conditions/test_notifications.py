"""The fleet's alerts on their way to a person, through the same webhook as the daemon's."""

from __future__ import annotations

from pathlib import Path

from pytest_httpserver import HTTPServer

from forecastd.alerts import AlertDispatcher
from forecastd.clock import SystemClock
from forecastd.fleet.conditions.alert import FleetAlert
from forecastd.fleet.conditions.notifier import AlertNotifier


def test_server_alarm_and_recovery_reach_webhook(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("")
    found = FleetAlert("db-01", "database", "disk_percent", "critical", 5.0, 5.0, 97.0, 80.0, 92.0)
    url = httpserver.url_for("/hook")
    for known, now in (((), (found,)), ((found,), ())):  # a restart in between
        with AlertDispatcher(
            url, None, interval=3600, clock=SystemClock(), state_dir=tmp_path, network="fleet"
        ) as alerts:
            AlertNotifier(alerts, known).update(now)
            alerts.close(60)
    told = [request.get_json() for request, _ in httpserver.log]
    assert [(one["event"], one["kind"], one["key"], one["network"]) for one in told] == [
        ("alarm", "server_critical", "db-01", "fleet"), ("recovery", "server_critical", "db-01", "fleet"),
    ]  # fmt: skip
    assert told[0]["text"] == "db-01 (database): disk space at 97 %, critical from 92 %."
