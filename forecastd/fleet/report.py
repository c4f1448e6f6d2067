"""How a running fleet stands, for people and machines: whether it is healthy, and everything that `GET /status` tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forecastd import __version__
from forecastd.clock import iso
from forecastd.fleet.service import Fleet
from forecastd.fleet.snapshot import TFT

LATE_BEATS = 10.0  # seconds without a look at the clock after which the ticker is as good as dead
STALE_TICKS, STALE_SECONDS = 6, 30.0  # a forecast older than both is too old


@dataclass(frozen=True)
class Health:
    """Whether the fleet does what it is for; the `reasons` why it does not, and `warnings` of what is wrong beside that."""

    ok: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """As `GET /healthz` gives it."""
        return {"ok": self.ok, "reasons": list(self.reasons), "warnings": list(self.warnings)}


def health(fleet: Fleet) -> Health:
    """Whether every thread does its work and the forecast is new."""
    reasons = []
    if not fleet.ticker.alive or fleet.clock.monotonic() - fleet.ticker.beat > LATE_BEATS:
        reasons.append("no ticks are closed any more: the ticker stands still")
    reasons += [f"{one.name} is not made any more: its thread is gone"
                for one in (fleet.forecasting, fleet.judging) if not one.alive]  # fmt: skip
    if fleet.fatal is not None:
        reasons.append(str(fleet.fatal))
    elif (late := _late(fleet)) is not None:
        reasons.append(late)
    warnings = []
    if fleet.memory.store.problem is not None:
        warnings.append(f"the window is not written to disk: {fleet.memory.store.problem}")
    if fleet.trouble is not None:
        warnings.append(f"the newest forecast failed: {fleet.trouble}")
    if fleet.judging.faults or fleet.forecasting.faults:
        warnings.append("an error that nobody foresaw happened; see the log")
    return Health(not reasons, tuple(reasons), tuple(warnings))


def forecast_age(fleet: Fleet) -> float | None:
    """Seconds of the fleet's clock since the newest forecast was made; None before the first."""
    forecast = fleet.published.forecast
    return None if forecast is None else max(0.0, fleet.clock.now() - forecast.made_at)


def _late(fleet: Fleet) -> str | None:
    """Why there is no forecast that is new enough, though there are servers to forecast."""
    if not len(fleet.memory.window):
        return None
    age, up = forecast_age(fleet), fleet.clock.monotonic() - fleet.started
    limit = max(STALE_TICKS * fleet.step, STALE_SECONDS * fleet.speed)
    if age is None:
        told = "there is no forecast yet"
        return f"{told}: {fleet.trouble}" if fleet.trouble else f"{told}, {up:.0f} s after the start"
    return f"the newest forecast is {age:.0f} s old" if age > limit else None


def status(fleet: Fleet) -> dict[str, Any]:
    """As `GET /status` gives it."""
    clock, published, memory, manifest = fleet.clock, fleet.published, fleet.memory, fleet.model.manifest
    now, newest = clock.now(), memory.window.newest
    return {
        "version": __version__,
        "started_at": iso(fleet.started_at),
        "now": iso(now),
        "uptime_seconds": round(clock.monotonic() - fleet.started, 3),
        "step_seconds": fleet.step,
        "synthetic": fleet.synthetic,
        "speed": fleet.speed,
        "health": health(fleet).as_json(),
        "model": {
            "name": manifest.name,
            "sha256": manifest.sha256,
            "engine": fleet.settings.fleet_engine,
            "metrics": list(manifest.names),
            "horizon_steps": manifest.horizon,
            "encoder_length": manifest.encoder_length,
            "encoder_minimum": manifest.encoder_minimum,
        },
        "tick": {
            "newest": newest,
            "time": iso(newest * fleet.step),
            "age_seconds": round(now - (newest + 1) * fleet.step, 3),
        },
        "forecast": _forecast(fleet),
        "servers": {**published.states(), "total": len(memory.window)},
        "window": memory.as_json(now),
        "ingest": memory.tally.as_json(),
        "pulls": [one.as_json() for one in fleet.puller.report()],
        "risk": dict(published.summary),
        "alerts": dict(published.alert_counts),
        "supervision": fleet.model.counts(),
    }


def _forecast(fleet: Fleet) -> dict[str, Any]:
    forecast, age = fleet.published.forecast, forecast_age(fleet)
    models = () if forecast is None else forecast.models
    return {
        "made_at": None if forecast is None else iso(forecast.made_at),
        "origin": None if forecast is None else iso(forecast.tick * forecast.step),
        "age_seconds": None if age is None else round(age, 3),
        "seconds": None if forecast is None else round(forecast.seconds, 4),
        "servers": len(models),
        "tft": models.count(TFT),
        "heuristic": len(models) - models.count(TFT),
        "skipped_ticks": fleet.forecasting.passed_over,
        "failures": fleet.failures,
        "last_error": fleet.trouble,
    }


def servers(fleet: Fleet, state: str | None = None, profile: str | None = None) -> list[dict[str, Any]]:
    """Every server as `GET /servers` gives it, in the order of their names."""
    published, window, now = fleet.published, fleet.memory.window, fleet.clock.now()
    found = []
    for one in published.servers:
        if state not in {None, one.state} or profile not in {None, one.profile}:
            continue
        seen = window.last_seen(one.server)
        found.append({
            **vars(one),
            "score": round(one.score, 2),
            "model": published.model_of(one.server),
            "last_seen": None if seen is None else iso(seen),
            "age_seconds": None if seen is None else round(now - seen, 3),
        })  # fmt: skip
    return sorted(found, key=lambda one: str(one["server"]))
