"""A forecast of all servers, from the rolling window to the bytes that are served: ours, and the ways it is done otherwise.

Both sides have the same network with the same weights and the same rows, and what they say of each server is held against
each other before any second is printed. They take turns, and of each the best turn counts: others who work on the machine
only ever make a turn longer. Between two ticks there is a pause, as there is in service, if a shorter one; what ours spends
in it, and so does not at the tick, is in the processors' time that is told.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Count, Figure
from benchmarks.fleet import peers
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import MODEL_M, THREADS, Servers
from benchmarks.processes import measure, python
from forecastd.clock import SystemClock
from forecastd.fleet.inference import FleetForecaster
from forecastd.fleet.snapshot import TFT, FleetForecast
from forecastd.supervise.policy import Policy

COUNTS = (20, 200, 2000)
TURNS = {20: 7, 200: 5, 2000: 3}
TICKS_A_TURN = 3  # of ours: it is the shorter one
PAUSE = 1.5e-3  # seconds a server between two ticks; 3 of the 5 at 2,000
ASKED = {20: 20, 200: 20, 2000: 25}  # how many times as fast as the known request
HALF_A_TICK = 2.5  # seconds
TOLERANCE = 1e-3  # of the quantile range
REQUEST, LIBRARY = "the known daemon's request", "from_dataset + predict alone"
ENGINES = ("fused", "onnx", "stream")  # beside the library's


@dataclass
class Turns:
    """Seconds at one number of servers: our first forecast, all others of ours, and the request's steps in each turn."""

    cold: float = 0.0
    ours: list[float] = field(default_factory=list)
    request: list[dict[str, float]] = field(default_factory=list)
    difference: float = 0.0  # of the quantile range, the largest of all turns
    megabytes: tuple[float, float] = (0.0, 0.0)  # of text: ours and the request's
    processors: float = 0.0  # seconds of all threads of ours a tick, the pauses included

    @property
    def quickest(self) -> dict[str, float]:
        """The steps of the quickest request."""
        return min(self.request, key=lambda steps: sum(steps.values()))

    @property
    def predict(self) -> float:
        """The quickest data set and prediction."""
        return min(steps["from_dataset and predict"] for steps in self.request)


def run(*, quick: bool, seed: int, others: str | None = None) -> Iterator[Figure | Count]:
    """All numbers of servers; quick: 20, and no engine by itself.

    `others`: the interpreter that has the other libraries, when this one has not.
    """
    counts, ours = COUNTS[:1] if quick else COUNTS, {}
    for count in counts:
        turns = take_turns(count, 3 if quick else TURNS[count], seed)
        ours[count] = min(turns.ours)
        yield from figures(count, turns)
    if not quick:
        for count in counts:
            yield from engines(count, seed, turns=TURNS[count])
    yield memory(counts[-1], seed)
    yield from peers.run(ours, seed=seed, turns=2 if quick else 3, interpreter=others)


def take_turns(count: int, turns: int, seed: int) -> Turns:
    """Ours and the known request in turns, each a tick further on."""
    from benchmarks.fleet import request
    from benchmarks.fleet.library import Library, by_server
    from models.fleet.engines import range_difference

    servers, found = Servers(count, seed=seed, ahead=1 + turns * TICKS_A_TURN), Turns()
    library = Library(MODEL_M, servers.names)
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "m"
        library.write_bundle(bundle)
        with forecaster(bundle) as ours:
            found.cold = timed(ours, servers)[0]
            for _ in range(turns):
                before = spent(ours)
                for _ in range(TICKS_A_TURN):
                    servers.move_on()
                    time.sleep(PAUSE * count)
                    seconds, forecast = timed(ours, servers)
                    found.ours.append(seconds)
                time.sleep(PAUSE * count)
                found.processors = (spent(ours) - before) / TICKS_A_TURN
                asked = request.answer(library, servers.records(MODEL_M))
                found.request.append(asked.seconds)
                assert (asked.index["tick"] == servers.tick + 1).all(), "the library does not forecast the next tick"
                told = by_server(MODEL_M, asked.outputs, asked.index, forecast.servers)
                got = forecast.quantiles.transpose(0, 2, 3, 1)
                found.difference = max(found.difference, range_difference(got, told))
                assert found.difference <= TOLERANCE, f"the two forecasts differ by {found.difference:.1e}"
            found.megabytes = sum(map(len, forecast.encoded)) / 1e6, len(asked.text) / 1e6
    return found


def forecaster(bundle: Path) -> FleetForecaster:
    """As the service runs a bundle: in a supervised child."""
    return FleetForecaster(bundle, policy=Policy(), clock=SystemClock(), engine="auto", threads=THREADS)


def spent(ours: FleetForecaster) -> float:
    """Seconds of the processors' time, of this process and the model's."""
    import psutil

    processes = [psutil.Process(), *(psutil.Process(int(str(one["pid"]))) for one in ours.children())]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def timed(ours: FleetForecaster, servers: Servers) -> tuple[float, FleetForecast]:
    """Seconds from the rolling window to the stored bytes of all servers."""
    began = time.perf_counter()
    forecast = ours.forecast(servers.block(MODEL_M.encoder))
    seconds = time.perf_counter() - began
    assert forecast.models == (TFT,) * len(servers.names) == (TFT,) * len(forecast.encoded)
    return seconds, forecast


def figures(count: int, turns: Turns) -> Iterator[Figure | Count]:
    """What the turns come to."""
    name, best, steps = f"{count} servers, window to stored JSON", min(turns.ours), turns.quickest
    whole = sum(steps.values())
    yield Figure(name, best, whole, "s", REQUEST, f"ratio >= {ASKED[count]}")
    yield Figure(name, best, turns.predict, "s", LIBRARY, "ratio >= 10")
    yield Figure(f"{count} servers, the first one", turns.cold, whole, "s", REQUEST, "nothing kept yet; no aim")
    if count == COUNTS[-1]:
        yield Figure(name, best, HALF_A_TICK, "s", "half a tick", "ratio >= 1")
    yield Figure(
        f"{count} servers, largest difference of the two forecasts", turns.difference, TOLERANCE, "of the quantile range",
        "allowed", "ratio >= 1",
    )  # fmt: skip
    yield Count(
        f"{count} servers, the request's steps in the quickest of {len(turns.request)} turns, {THREADS} threads",
        {
            **{f"{step}, s": round(seconds, 3) for step, seconds in steps.items()},
            "its text, MB": round(turns.megabytes[1], 1),
            "our stored bytes, MB": round(turns.megabytes[0], 1),
            "ours, slowest tick, s": round(max(turns.ours), 3),
            "ours, processors' time a tick, pauses included, s": round(turns.processors, 3),
        },
        "both forecast the tick after the last observed one, and say the same of each server",
    )


def engines(count: int, seed: int, turns: int) -> Iterator[Figure | Count]:
    """Each engine without supervision, beside the library's forward as an engine, in a process of their own."""
    found = side("engines", count, seed, str(turns))
    for name in ENGINES:
        yield Figure(
            f"{count} servers, engine {name} in process", found[name], found["library"], "s", "engine library",
            "scaled, run, restored, as JSON; no aim",
        )  # fmt: skip
    yield Figure(
        f"{count} servers, engine stream, the first one", found["stream, first"], found["library, first"], "s",
        "engine library", "no aim",
    )  # fmt: skip


def memory(count: int, seed: int) -> Figure:
    """Peak resident memory; ours is the sum of the parent's and the child's peaks."""
    ours, library = (side(which, count, seed) for which in ("ours", "library"))
    return Figure(
        f"{count} servers, peak memory, parent and child", ours["megabytes"], library["megabytes"], "MB", LIBRARY,
        "ratio >= 2" if count == COUNTS[-1] else f"asked for at {COUNTS[-1]:,} only",
    )  # fmt: skip


def side(which: str, count: int, seed: int, *more: str) -> dict[str, float]:
    """What one side measures of itself in a fresh process."""
    arguments = python("-m", "benchmarks.fleet.side", which, str(bundle_m()), str(count), str(seed), *more)
    told: dict[str, float] = json.loads(measure(arguments).stdout)
    return told
