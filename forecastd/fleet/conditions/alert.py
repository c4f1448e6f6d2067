"""One alert about one condition of one server, and its text.

A condition is a metric of the contract, `status` (the server reports a status other than ok) or `silence` (no rows
arrive from it).

Invariant: an alert stores numbers only; its text is made when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from forecastd.clock import to_iso
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.documents import AlertDocument, AlertEventDocument
from forecastd.fleet.formatting import format_value, metric_label
from forecastd.runtime.formatting import format_duration

Severity = Literal["early", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("early", "warning", "critical")  # by rank, from 1
STATUS, SILENCE = "status", "silence"
EventKind = Literal["opened", "escalated", "eased", "cleared"]


@dataclass(frozen=True)
class FleetAlert:
    """An open alert. Times are unix seconds; `value` and the thresholds are in the metric's unit.

    `id` does not change while the alert is open and is never reused. `since`: when the alert got its current severity.
    Severity `early`: the value is below the warning threshold and the forecast's p50 reaches it within the horizon.
    `minutes_ahead`: minutes until the p50 reaches the next threshold; None where it reaches none within the horizon.
    For the condition `status`, `value` is the rank of the reported status; for `silence`, the minutes without data.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    server: str
    profile: str
    condition: str
    severity: Severity
    opened_at: float
    since: float
    value: float | None = None
    warning: float | None = None
    critical: float | None = None
    minutes_ahead: float | None = None

    @property
    def id(self) -> str:
        """`SERVER/CONDITION/UNIX SECONDS`."""
        return f"{self.server}/{self.condition}/{self.opened_at:.0f}"

    @property
    def message(self) -> str:
        """The alert in one sentence without a full stop: `web-01: memory at 97 %, critical from 95 %`."""
        return f"{self.server}: {self.description}"

    @property
    def description(self) -> str:
        """`message` without the server's name."""
        if self.condition == STATUS:
            return f"reports status {'down' if self.severity == 'critical' else 'degraded'}"
        if self.condition == SILENCE:
            return f"no data for {format_duration(60 * (self.value or 0.0))}"
        value_text = "without a value" if self.value is None else f"at {format_value(self.condition, self.value)}"
        return f"{metric_label(self.condition)} {value_text}, {self._threshold_text()}"

    def _threshold_text(self) -> str:
        """How the value and its forecast relate to the thresholds."""
        threshold = (self.critical if self.severity == "critical" else self.warning) or 0.0
        next_threshold = self.warning if self.severity == "early" else self.critical
        forecast_text = ""
        if self.minutes_ahead is not None and next_threshold is not None:
            duration = format_duration(60 * self.minutes_ahead)
            forecast_text = f"likely above {format_value(self.condition, next_threshold)} in {duration}"
        if self.severity == "early":
            return forecast_text or f"was forecast above {format_value(self.condition, threshold)}"
        is_below = self.value is not None and self.value < threshold
        threshold_text = f"{'was ' if is_below else ''}{self.severity} from {format_value(self.condition, threshold)}"
        return f"{threshold_text}, {forecast_text}" if forecast_text and self.severity == "warning" else threshold_text

    def document(self) -> AlertDocument:
        """The alert as `GET /alerts` returns it."""
        times = {"opened_at": to_iso(self.opened_at), "since": to_iso(self.since)}
        unit = METRICS[METRIC_INDEX[self.condition]].unit if self.condition in METRIC_INDEX else None
        return AlertDocument(**{**vars(self), **times}, id=self.id, unit=unit, message=self.message)


@dataclass(frozen=True)
class AlertEvent:
    """A change of an alert at `at` (unix seconds).

    `alert`: its state at that time. `reason`: why it was cleared, else empty.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: EventKind
    at: float
    alert: FleetAlert
    reason: str = ""

    @property
    def text(self) -> str:
        """The event as one line for the log."""
        if self.kind == "cleared":
            return f"cleared: {self.alert.message}; {self.reason}"
        return f"{self.kind}, {self.alert.severity}: {self.alert.message}"

    def document(self) -> AlertEventDocument:
        """The event as `GET /alerts` returns it."""
        return AlertEventDocument(event=self.kind, at=to_iso(self.at), reason=self.reason, alert=self.alert.document())
