"""A restart with a full window: from the start of the process until every server's true forecast is served.

Beside it the known way, a process of its own too: it reads its window from a pickle, builds the library's data set and
network and answers its first request. It stands for what the known daemon's restart took once it saved its window.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Count, Figure
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import KEEP, STEP
from benchmarks.fleet.serving import History, closed_now, serve
from benchmarks.processes import measure, python
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.snapshot import TFT
from forecastd.fleet.store import TickStore

COUNTS = (20, 2000)
TICKS = 720  # on disk; an hour
LOAD_SECONDS = 1.0  # that loading the window may take


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """20 and 2,000 servers; quick: 20, once."""
    for count in COUNTS[:1] if quick else COUNTS:
        with tempfile.TemporaryDirectory() as place:
            yield from restarted(count, Path(place), 1 if quick else 3, seed)


def restarted(count: int, place: Path, turns: int, seed: int) -> Iterator[Figure | Count]:
    """The best of some turns."""
    path = place / "state" / "fleet" / "window.sqlite"
    path.parent.mkdir(parents=True)
    history = History(path, count, TICKS, seed)
    loads, serving, usual = [], [], []
    for _ in range(turns):
        history.catch_up()
        loads.append(load(path, count))
        history.catch_up()
        serving.append(first_forecast(place, count))
        usual.append(measure(python("-m", "benchmarks.fleet.side", "restart", str(bundle_m()), str(count), str(seed))))
    told = [json.loads(one.stdout)["seconds"] for one in usual]
    best = min(serving, key=lambda one: one["every forecast served"])
    yield Figure(
        f"{count} servers, start to every server's first true forecast", best["every forecast served"],
        min(told), "s", "imports, pickle and first request the known way", "no aim",
    )  # fmt: skip
    yield Figure(f"{count} servers, window load alone", min(loads), LOAD_SECONDS, "s", "allowed", "ratio >= 1")
    yield Count(
        f"{count} servers, {TICKS} ticks on disk, seconds since the start of the process",
        {
            **{what: round(seconds, 2) for what, seconds in best.items()},
            "bytes on disk": sum(one.stat().st_size for one in path.parent.glob("window.sqlite*")),
        },
        "the first answer of GET /forecast has every server, all by the model",
    )  # fmt: skip


def load(path: Path, count: int) -> float:
    """Seconds to bring the window back into memory."""
    with TickStore(path, step=STEP) as store:
        began = time.perf_counter()
        window = FleetWindow(STEP, KEEP, count, ahead=8)
        report = store.load(window, float((closed_now() + 1) * STEP))
        seconds = time.perf_counter() - began
    assert report.servers == count, report
    assert report.rows >= count * (KEEP - 3), report  # of the last seconds there may be none yet
    return seconds


def first_forecast(place: Path, count: int) -> dict[str, float]:
    """A service from its start to its first forecast of every server."""
    with serve(place, bundle_m()) as service:
        service.wait_for("/status")
        answering = time.monotonic() - service.began
        first = json.loads(service.wait_for("/forecast?limit=1"))
        made = time.monotonic() - service.began
        body = service.wait_for("/forecast")
        served = time.monotonic() - service.began
        forecasts = json.loads(body)["forecasts"]
    models = {one["model"] for one in forecasts}
    assert first["count"] == len(forecasts) == count, f"{len(forecasts)} of {count} servers have a forecast"
    assert models == {TFT}, f"the first forecast is by {models}"
    return {"answering": answering, "first forecast made": made, "every forecast served": served}
