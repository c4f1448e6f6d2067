"""The health of a running fleet, and the documents of `GET /status` and `GET /servers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forecastd import __version__
from forecastd.clock import to_iso
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.fleet_forecast import TFT
from forecastd.runtime.formatting import format_duration

MAX_TICKER_SILENCE_SECONDS = 10.0  # without a heartbeat the ticker counts as stopped
STALE_TICKS, STALE_SECONDS = 6, 30.0  # a forecast older than both is stale


@dataclass(frozen=True)
class FleetHealth:
    """Whether the fleet is healthy, and the `reasons` if not. `warnings` do not make it unhealthy."""

    ok: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The health as `GET /healthz` returns it."""
        return {"ok": self.ok, "reasons": list(self.reasons), "warnings": list(self.warnings)}


def check_health(fleet: Fleet) -> FleetHealth:
    """Healthy: every thread is running and the forecast is recent."""
    reasons = []
    if not fleet.ticker.alive or fleet.clock.monotonic() - fleet.ticker.last_heartbeat > MAX_TICKER_SILENCE_SECONDS:
        reasons.append("no ticks are closed: the ticker has stopped")
    workers = (fleet.forecast_worker, fleet.evaluation_worker)
    reasons += [f"{worker.name} has stopped: its thread ended" for worker in workers if not worker.alive]
    if fleet.fatal_error is not None:
        reasons.append(str(fleet.fatal_error))
    elif (stale := _stale_reason(fleet)) is not None:
        reasons.append(stale)
    warnings = []
    if fleet.window.store.last_error is not None:
        warnings.append(f"the window is not written to disk: {fleet.window.store.last_error}")
    if fleet.last_error is not None:
        warnings.append(f"the newest forecast failed: {fleet.last_error}")
    if fleet.evaluation_worker.errors or fleet.forecast_worker.errors:
        warnings.append("an unexpected error occurred; see the log")
    return FleetHealth(not reasons, tuple(reasons), tuple(warnings))


def forecast_age(fleet: Fleet) -> float | None:
    """Seconds of the fleet's clock since the newest forecast was made; None before the first."""
    forecast = fleet.snapshot.forecast
    return None if forecast is None else max(0.0, fleet.clock.now() - forecast.made_at)


def _stale_reason(fleet: Fleet) -> str | None:
    """Why there is no recent forecast although there are servers to forecast; None where there is one."""
    if not len(fleet.window.memory):
        return None
    age, uptime = forecast_age(fleet), fleet.clock.monotonic() - fleet.started_monotonic
    limit = max(STALE_TICKS * fleet.step, STALE_SECONDS * fleet.speed)
    if age is None:
        text = "no forecast yet"
        return (
            f"{text}: {fleet.last_error}" if fleet.last_error else f"{text}, {format_duration(uptime)} after the start"
        )
    return f"the newest forecast is {format_duration(age)} old" if age > limit else None


def status_document(fleet: Fleet) -> dict[str, Any]:
    """The document of `GET /status`."""
    clock, snapshot, window, manifest = fleet.clock, fleet.snapshot, fleet.window, fleet.model.manifest
    now, newest_tick = clock.now(), window.memory.newest
    return {
        "version": __version__,
        "started_at": to_iso(fleet.started_at),
        "now": to_iso(now),
        "uptime_seconds": round(clock.monotonic() - fleet.started_monotonic, 3),
        "step_seconds": fleet.step,
        "synthetic": fleet.synthetic,
        "speed": fleet.speed,
        "health": check_health(fleet).as_json(),
        "model": {
            "name": manifest.name,
            "sha256": manifest.sha256,
            "engine": fleet.settings.fleet.engine,
            "metrics": list(manifest.names),
            "horizon_steps": manifest.horizon,
            "encoder_length": manifest.encoder_length,
            "encoder_minimum": manifest.encoder_minimum,
        },
        "tick": {
            "newest": newest_tick,
            "time": to_iso(newest_tick * fleet.step),
            "age_seconds": round(now - (newest_tick + 1) * fleet.step, 3),
        },
        "forecast": _forecast_status(fleet),
        "servers": {**snapshot.count_states(), "total": len(window.memory)},
        "window": window.as_json(now),
        "ingest": window.counters.as_json(),
        "scrapes": [scrape.as_json() for scrape in fleet.scraper.statuses()],
        "risk": dict(snapshot.summary),
        "alerts": dict(snapshot.alert_counts),
        "supervision": fleet.model.counts(),
    }


def _forecast_status(fleet: Fleet) -> dict[str, Any]:
    forecast, age = fleet.snapshot.forecast, forecast_age(fleet)
    models = () if forecast is None else forecast.models
    return {
        "made_at": None if forecast is None else to_iso(forecast.made_at),
        "origin": None if forecast is None else to_iso(forecast.tick * forecast.step),
        "age_seconds": None if age is None else round(age, 3),
        "seconds": None if forecast is None else round(forecast.seconds, 4),
        "servers": len(models),
        "tft": models.count(TFT),
        "heuristic": len(models) - models.count(TFT),
        "skipped_ticks": fleet.forecast_worker.skipped_ticks,
        "failures": fleet.failures,
        "last_error": fleet.last_error,
    }


def list_servers(fleet: Fleet, state: str | None = None, profile: str | None = None) -> list[dict[str, Any]]:
    """Every server as `GET /servers` returns it, sorted by name. `state`, `profile`: only these servers."""
    snapshot, window, now = fleet.snapshot, fleet.window.memory, fleet.clock.now()
    rows = []
    for view in snapshot.servers:
        if state not in {None, view.state} or profile not in {None, view.profile}:
            continue
        last_seen = window.last_seen(view.server)
        rows.append({
            **vars(view),
            "score": round(view.score, 2),
            "model": snapshot.model_for(view.server),
            "last_seen": None if last_seen is None else to_iso(last_seen),
            "age_seconds": None if last_seen is None else round(now - last_seen, 3),
        })  # fmt: skip
    return sorted(rows, key=lambda row: str(row["server"]))
