"""Evaluates a tick: which servers are ready, their risk, and the open alerts.

Every tick is evaluated, with or without its forecast, so that a critical server is reported in time while the model
hangs. The alert state is saved when it changes, so that a restart opens no alert a second time.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson

from forecastd.errors import NeedsHuman
from forecastd.fleet.conditions.alert_tracker import AlertTracker
from forecastd.fleet.conditions.notifier import AlertNotifier, OperatorNotifier
from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES
from forecastd.fleet.documents import ServerStatus
from forecastd.fleet.forecast.fleet_forecast import FleetForecast
from forecastd.fleet.risk.assessment import assess_risk
from forecastd.fleet.risk.current_values import current_values
from forecastd.fleet.risk.thresholds import Thresholds
from forecastd.fleet.snapshot import FleetSnapshot
from forecastd.fleet.window.readiness import READY, SILENT, PreparedInput, prepare_input
from forecastd.fleet.window.window import WindowBlock
from forecastd.runtime.files import write_atomic

log = logging.getLogger(__name__)

SAVE_INTERVAL_TICKS = 12  # ticks between two saves of the alert state while alerts are open and no event occurs
STATE_NAMES = {READY: "ready", SILENT: "silent"}


class TickEvaluator:
    """Evaluates one tick after the other, in one thread."""

    def __init__(self, thresholds: Thresholds, path: Path, step: int, notifier: OperatorNotifier) -> None:
        """`path`: the file of the alert state. `notifier`: notifies the operator of critical servers."""
        self._thresholds, self._path, self._step = thresholds, path, step
        self._alerts = _load_alerts(path)
        self._notifier = AlertNotifier(notifier, self._alerts.open_alerts)
        self._last_saved_tick = 0
        self._has_changes = self._save_failed = False

    def evaluate(
        self, block: WindowBlock, forecast: FleetForecast | None, metrics: tuple[str, ...], minimum: int
    ) -> FleetSnapshot:
        """The snapshot of the block's tick, without the forecast.

        `metrics`, `minimum`: the metrics and the number of ticks that the model needs.
        """
        assessment = assess_risk(
            current_values(block, self._step),
            None if forecast is None else _with_all_metrics(forecast),
            self._thresholds,
        )
        prepared = check_readiness(block, metrics, minimum)
        servers = tuple(
            ServerStatus(
                server,
                block.profiles[row],
                block.statuses[row],
                STATE_NAMES.get(int(prepared.codes[row]), "warming"),
                prepared.reason(row),
                int(prepared.missing_ticks[row]),
                risk.score,
                risk.level,
            )
            for row, (server, risk) in enumerate(zip(block.servers, assessment.risks, strict=True))
        )
        events = self._alerts.update(assessment)
        self._notifier.update(self._alerts.open_alerts)
        self._save(block.tick, has_events=bool(events))
        return FleetSnapshot(
            tick=block.tick,
            servers=servers,
            risk=tuple(orjson.dumps(risk) for risk in assessment.worst_first),
            summary=assessment.summary,
            alerts=orjson.dumps(self._alerts.document()),
            alert_counts=self._alerts.counts(),
        )

    def _save(self, tick: int, *, has_events: bool) -> None:
        """Save the alert state when it has changed. Without it a restart opens the alerts again."""
        self._has_changes = self._has_changes or has_events
        if not self._has_changes and not (
            self._alerts.open_alerts and tick - self._last_saved_tick >= SAVE_INTERVAL_TICKS
        ):
            return
        try:
            write_atomic(self._path, self._alerts.to_json())
        except NeedsHuman as error:
            if not self._save_failed:
                log.warning("Cannot save the alert state; retrying at every tick: %s", error)
            self._save_failed = True
            return
        if self._save_failed:
            log.info("The alert state is saved again.")
        self._last_saved_tick, self._has_changes, self._save_failed = tick, False, False


def check_readiness(block: WindowBlock, metrics: tuple[str, ...], minimum: int) -> PreparedInput:
    """Which servers a model of these metrics can forecast; metrics that the model does not use are ignored."""
    values = block.values if metrics == METRIC_NAMES else block.values[:, :, [METRIC_INDEX[name] for name in metrics]]
    return prepare_input(values, minimum, metrics)


def _with_all_metrics(forecast: FleetForecast) -> FleetForecast:
    """The forecast with a column for every metric of the contract; NaN for metrics that the model does not forecast."""
    if forecast.metrics == METRIC_NAMES:
        return forecast
    servers, rows, _, levels = forecast.quantiles.shape
    quantiles = np.full((servers, rows, len(METRIC_NAMES), levels), np.nan, np.float32)
    quantiles[:, :, [METRIC_INDEX[name] for name in forecast.metrics]] = forecast.quantiles
    return replace(forecast, metrics=METRIC_NAMES, quantiles=quantiles)


def _load_alerts(path: Path) -> AlertTracker:
    """The saved alert tracker; a new one when no state is saved or it cannot be read."""
    try:
        return AlertTracker.from_json(path.read_bytes())
    except FileNotFoundError:
        return AlertTracker()
    except (OSError, ValueError) as error:
        log.warning("Cannot read the alert state in %s (%s): starting without open alerts.", path, type(error).__name__)
        return AlertTracker()
