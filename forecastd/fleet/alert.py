"""One alert: a condition of one server that a person should know of, and the words for it.

A condition is a metric of the contract, `status` (the server says itself that it is not well) or `silence` (nothing comes
from it). The one thing to know before changing it: an alert keeps numbers; its words are made when somebody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from forecastd.clock import iso
from forecastd.fleet.contract import INDEX, METRICS
from forecastd.fleet.words import amount, label, minutes

Severity = Literal["early", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("early", "warning", "critical")  # by rank, from 1
STATUS, SILENCE = "status", "silence"
Kind = Literal["opened", "escalated", "eased", "cleared"]


@dataclass(frozen=True)
class Alert:
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
        return f"{self.server}: {self.what}"

    @property
    def what(self) -> str:
        """The same without the server's name."""
        if self.condition == STATUS:
            return f"says that it is {'down' if self.severity == 'critical' else 'degraded'}"
        if self.condition == SILENCE:
            return f"has sent nothing for {minutes(self.value or 0.0)}"
        now = "without a value" if self.value is None else f"at {amount(self.condition, self.value)}"
        return f"{label(self.condition)} {now}, {self._prospect()}"

    def _prospect(self) -> str:
        """What it has to do with its thresholds."""
        limits = {"early": self.warning, "warning": self.warning, "critical": self.critical}
        limit, next_limit = limits[self.severity] or 0.0, self.warning if self.severity == "early" else self.critical
        ahead = ""
        if self.minutes_ahead is not None and next_limit is not None:
            ahead = f"likely above {amount(self.condition, next_limit)} in {minutes(self.minutes_ahead)}"
        if self.severity == "early":
            return ahead or f"was going to be above {amount(self.condition, limit)}"
        held = self.value is not None and self.value < limit
        told = f"{'was ' if held else ''}{self.severity} from {amount(self.condition, limit)}"
        return f"{told}, {ahead}" if ahead and self.severity == "warning" else told

    def as_json(self) -> dict[str, Any]:
        """As `GET /alerts` gives it."""
        unit = METRICS[INDEX[self.condition]].unit if self.condition in INDEX else None
        return {
            "id": self.id,
            **vars(self),
            "unit": unit,
            "opened_at": iso(self.opened_at),
            "since": iso(self.since),
            "message": self.message,
        }


@dataclass(frozen=True)
class Event:
    """Something happened to an alert at `at` (unix seconds), which is as it was then. `reason`: why it is over, if it is."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Kind
    at: float
    alert: Alert
    reason: str = ""

    @property
    def text(self) -> str:
        """One line for a log."""
        if self.kind == "cleared":
            return f"cleared: {self.alert.message}; {self.reason}"
        return f"{self.kind}, {self.alert.severity}: {self.alert.message}"

    def as_json(self) -> dict[str, Any]:
        """As `GET /alerts` gives it."""
        return {"event": self.kind, "at": iso(self.at), "reason": self.reason, "alert": self.alert.as_json()}
