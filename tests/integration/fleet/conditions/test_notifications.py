"""Fleet alerts reach the operator through the same webhook as those of the daemon."""

from __future__ import annotations

from pathlib import Path

from pytest_httpserver import HTTPServer

from forecastd.alerts import AlertDispatcher
from forecastd.clock import SystemClock
from forecastd.fleet.conditions.alert import FleetAlert
from forecastd.fleet.conditions.notifier import AlertNotifier
from forecastd.settings import AlertSettings


def test_server_alarm_and_recovery_reach_webhook(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("")
    alert = FleetAlert("db-01", "database", "disk_percent", "critical", 5.0, 5.0, 97.0, 80.0, 92.0)
    url = httpserver.url_for("/hook")
    for open_alerts, new_alerts in (((), (alert,)), ((alert,), ())):  # a restart in between
        with AlertDispatcher(
            AlertSettings.model_validate({"alert_webhook": url}), tmp_path, SystemClock(), network="fleet"
        ) as alerts:
            AlertNotifier(alerts, open_alerts).update(new_alerts)
            alerts.close(60)
    messages = [request.get_json() for request, _ in httpserver.log]
    assert [(message["event"], message["kind"], message["key"], message["network"]) for message in messages] == [
        ("firing", "server_critical", "db-01", "fleet"), ("resolved", "server_critical", "db-01", "fleet"),
    ]  # fmt: skip
    assert messages[0]["text"] == "db-01 (database): disk space at 97 %, critical from 92 %."
