"""A restart with a full window: from the start of the process to the first model forecast of every server.

The reference, a process of its own too, reads its window from a pickle, builds the library's data set and network and
answers its first request. That is what the reference daemon's restart takes if it saves its window.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import STEP, WINDOW_TICKS
from benchmarks.fleet.serving import StoredHistory, current_closed_tick, serve
from benchmarks.processes import measure, python
from forecastd.fleet.forecast.fleet_forecast import TFT
from forecastd.fleet.window.store import TickStore
from forecastd.fleet.window.window import FleetWindow

SERVER_COUNTS = (20, 2000)
TICKS = 720  # on disk, one hour
MAX_LOAD_SECONDS = 1.0  # limit for loading the window


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """20 and 2,000 servers; quick: 20, once."""
    for count in SERVER_COUNTS[:1] if quick else SERVER_COUNTS:
        with tempfile.TemporaryDirectory() as directory:
            yield from measure_restarts(count, Path(directory), 1 if quick else 3, seed)


def measure_restarts(count: int, directory: Path, turns: int, seed: int) -> Iterator[Figure | PremiseCount]:
    """The best of some turns."""
    path = directory / "state" / "fleet" / "window.sqlite"
    path.parent.mkdir(parents=True)
    history = StoredHistory(path, count, TICKS, seed)
    loads, serving, baseline_runs = [], [], []
    for _ in range(turns):
        history.catch_up()
        loads.append(time_load(path, count))
        history.catch_up()
        serving.append(time_first_forecast(directory, count))
        baseline_runs.append(
            measure(python("-m", "benchmarks.fleet.side", "restart", str(bundle_m()), str(count), str(seed)))
        )
    baseline_seconds = [json.loads(item.stdout)["seconds"] for item in baseline_runs]
    fastest = min(serving, key=lambda item: item["every forecast served"])
    yield Figure(
        f"{count} servers, start to the first model forecast of every server", fastest["every forecast served"],
        min(baseline_seconds), "s", "imports, pickle and first request of the reference", "no target",
    )  # fmt: skip
    yield Figure(f"{count} servers, window load alone", min(loads), MAX_LOAD_SECONDS, "s", "allowed", "ratio >= 1")
    yield PremiseCount(
        f"{count} servers, {TICKS} ticks on disk, seconds since the start of the process",
        {
            **{label: round(seconds, 2) for label, seconds in fastest.items()},
            "bytes on disk": sum(item.stat().st_size for item in path.parent.glob("window.sqlite*")),
        },
        "the first response of GET /forecast has a model forecast of every server",
    )  # fmt: skip


def time_load(path: Path, count: int) -> float:
    """Seconds to load the window into memory."""
    with TickStore(path, step=STEP) as store:
        started = time.perf_counter()
        window = FleetWindow(STEP, WINDOW_TICKS, count, ticks_ahead=8)
        report = store.load(window, float((current_closed_tick() + 1) * STEP))
        seconds = time.perf_counter() - started
    assert report.servers == count, report
    assert report.rows >= count * (WINDOW_TICKS - 3), report  # the last seconds may be missing
    return seconds


def time_first_forecast(directory: Path, count: int) -> dict[str, float]:
    """A service from its start to its first forecast of every server."""
    with serve(directory, bundle_m()) as service:
        service.wait_for("/status")
        answering_at = time.monotonic() - service.started
        first_response = json.loads(service.wait_for("/forecast?limit=1"))
        first_forecast_at = time.monotonic() - service.started
        body = service.wait_for("/forecast")
        all_served_at = time.monotonic() - service.started
        forecasts = json.loads(body)["forecasts"]
    models = {forecast["model"] for forecast in forecasts}
    assert first_response["count"] == len(forecasts) == count, f"{len(forecasts)} of {count} servers have a forecast"
    assert models == {TFT}, f"the first forecast is by {models}"
    return {"answering": answering_at, "first forecast made": first_forecast_at, "every forecast served": all_served_at}
