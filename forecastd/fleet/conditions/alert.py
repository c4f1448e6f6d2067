"""One alert: a condition of one server that a person should know of, and the words for it.

A condition is a metric of the contract, `status` (the server says itself that it is not well) or `silence` (nothing comes
from it). The one thing to know before changing it: an alert keeps numbers; its words are made when somebody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from forecastd.clock import to_iso
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.formatting import format_minutes, format_value, metric_label

Severity = Literal["early", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("early", "warning", "critical")  # by rank, from 1
STATUS, SILENCE = "status", "silence"
EventKind = Literal["opened", "escalated", "eased", "cleared"]


@dataclass(frozen=True)
class FleetAlert:
    """An open alert. Times are unix seconds, `value` and the thresholds in the metric's unit.

    `id` stays the same as long as it is open and is never given twice. `since`: when it got its present severity.
    `early`: the value is below the warning threshold, and the forecast's p50 is going to reach it. `minutes_ahead`: until the
    p50 reaches the next threshold, None where it reaches none within the horizon.
    Of `status`, `value` is the rank of what the server says; of `silence`, for how many minutes nothing has come.
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
        """What is the matter, in one sentence without a full stop: `web-01: memory at 97 %, critical from 95 %`."""
        return f"{self.server}: {self.description}"

    @property
    def description(self) -> str:
        """The same without the server's name."""
        if self.condition == STATUS:
            return f"says that it is {'down' if self.severity == 'critical' else 'degraded'}"
        if self.condition == SILENCE:
            return f"has sent nothing for {format_minutes(self.value or 0.0)}"
        value_text = "without a value" if self.value is None else f"at {format_value(self.condition, self.value)}"
        return f"{metric_label(self.condition)} {value_text}, {self._threshold_text()}"

    def _threshold_text(self) -> str:
        """What it has to do with its thresholds."""
        thresholds = {"early": self.warning, "warning": self.warning, "critical": self.critical}
        threshold, next_threshold = (
            thresholds[self.severity] or 0.0,
            self.warning if self.severity == "early" else self.critical,
        )
        forecast_text = ""
        if self.minutes_ahead is not None and next_threshold is not None:
            forecast_text = (
                f"likely above {format_value(self.condition, next_threshold)} in {format_minutes(self.minutes_ahead)}"
            )
        if self.severity == "early":
            return forecast_text or f"was going to be above {format_value(self.condition, threshold)}"
        is_below = self.value is not None and self.value < threshold
        threshold_text = f"{'was ' if is_below else ''}{self.severity} from {format_value(self.condition, threshold)}"
        return f"{threshold_text}, {forecast_text}" if forecast_text and self.severity == "warning" else threshold_text

    def as_json(self) -> dict[str, Any]:
        """As `GET /alerts` gives it."""
        unit = METRICS[METRIC_INDEX[self.condition]].unit if self.condition in METRIC_INDEX else None
        return {
            "id": self.id,
            **vars(self),
            "unit": unit,
            "opened_at": to_iso(self.opened_at),
            "since": to_iso(self.since),
            "message": self.message,
        }


@dataclass(frozen=True)
class AlertEvent:
    """Something happened to an alert at `at` (unix seconds), which is as it was then. `reason`: why it is over, if it is."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: EventKind
    at: float
    alert: FleetAlert
    reason: str = ""

    @property
    def text(self) -> str:
        """One line for a log."""
        if self.kind == "cleared":
            return f"cleared: {self.alert.message}; {self.reason}"
        return f"{self.kind}, {self.alert.severity}: {self.alert.message}"

    def as_json(self) -> dict[str, Any]:
        """As `GET /alerts` gives it."""
        return {"event": self.kind, "at": to_iso(self.at), "reason": self.reason, "alert": self.alert.as_json()}
