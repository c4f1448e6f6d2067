"""The health of a running fleet, and the documents of `GET /status` and `GET /servers`."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from forecastd import __version__
from forecastd.clock import to_iso
from forecastd.fleet.documents import (
    ForecastSummary,
    HealthResponse,
    NewestTick,
    ServedModel,
    ServersResponse,
    StatusResponse,
    SupervisionSummary,
)
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.fleet_forecast import TFT
from forecastd.runtime.formatting import format_duration

MAX_TICKER_SILENCE_SECONDS = 10.0  # without a heartbeat the ticker counts as stopped
STALE_TICKS, STALE_SECONDS = 6, 30.0  # a forecast older than both is stale


def check_health(fleet: Fleet) -> HealthResponse:
    """Healthy: every thread is running and the forecast is recent."""
    reasons = stopped_threads(fleet)
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
    return HealthResponse(not reasons, tuple(reasons), tuple(warnings))


def stopped_threads(fleet: Fleet) -> list[str]:
    """Which threads make no progress."""
    silence = fleet.clock.monotonic() - fleet.ticker.last_heartbeat
    reasons = []
    if not fleet.ticker.is_alive() or silence > MAX_TICKER_SILENCE_SECONDS:
        reasons.append("no ticks are closed: the ticker has stopped")
    workers = (fleet.forecast_worker, fleet.evaluation_worker)
    return reasons + [f"{worker.name} has stopped: its thread ended" for worker in workers if not worker.is_alive()]


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


def status_document(fleet: Fleet) -> StatusResponse:
    """The document of `GET /status`."""
    clock, snapshot, window, manifest = fleet.clock, fleet.snapshot, fleet.window, fleet.model.manifest
    now, newest_tick = clock.now(), window.memory.newest
    return StatusResponse(
        version=__version__,
        started_at=to_iso(fleet.started_at),
        now=to_iso(now),
        uptime_seconds=round(clock.monotonic() - fleet.started_monotonic, 3),
        step_seconds=fleet.step,
        synthetic=fleet.synthetic,
        speed=fleet.speed,
        health=check_health(fleet),
        model=ServedModel(
            name=manifest.name,
            sha256=manifest.sha256,
            engine=fleet.settings.fleet.engine,
            metrics=manifest.names,
            horizon_steps=manifest.horizon,
            encoder_length=manifest.encoder_length,
            encoder_minimum=manifest.encoder_minimum,
        ),
        tick=NewestTick(newest_tick, to_iso(newest_tick * fleet.step), round(now - (newest_tick + 1) * fleet.step, 3)),
        forecast=_forecast_summary(fleet),
        servers=replace(snapshot.count_states(), total=len(window.memory)),
        window=window.document(now),
        ingest=window.counters,
        scrapes=fleet.scraper.statuses(),
        risk=snapshot.summary,
        alerts=snapshot.alert_counts,
        supervision=SupervisionSummary(**fleet.model.counts()),
    )


def _forecast_summary(fleet: Fleet) -> ForecastSummary:
    counts = ForecastSummary(
        skipped_ticks=fleet.forecast_worker.skipped_ticks, failures=fleet.failures, last_error=fleet.last_error
    )
    forecast, age = fleet.snapshot.forecast, forecast_age(fleet)
    if forecast is None or age is None:
        return counts
    by_model = forecast.models.count(TFT)
    return replace(
        counts,
        made_at=to_iso(forecast.made_at),
        origin=to_iso(forecast.tick * forecast.step),
        age_seconds=round(age, 3),
        seconds=round(forecast.seconds, 4),
        servers=len(forecast.models),
        tft=by_model,
        heuristic=len(forecast.models) - by_model,
    )


def servers_document(fleet: Fleet, state: str | None, profile: str | None, page: slice) -> ServersResponse:
    """The document of `GET /servers`. `state`, `profile`: only these servers. `page`: which of them are listed."""
    snapshot, window, now = fleet.snapshot, fleet.window.memory, fleet.clock.now()
    selected = sorted(
        (server for server in snapshot.servers if state in {None, server.state} and profile in {None, server.profile}),
        key=attrgetter("server"),
    )
    servers = []
    for server in selected[page]:
        last_seen = window.last_seen(server.server)
        servers.append(
            replace(
                server,
                score=round(server.score, 2),
                model=snapshot.model_for(server.server),
                last_seen=None if last_seen is None else to_iso(last_seen),
                age_seconds=None if last_seen is None else round(now - last_seen, 3),
            )
        )
    time = to_iso(snapshot.tick * fleet.step)
    return ServersResponse(snapshot.tick, time, len(selected), snapshot.count_states(), tuple(servers))
