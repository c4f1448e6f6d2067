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

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet import peers
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import MODEL_M, THREADS, SimulatedServers
from benchmarks.processes import measure, python
from forecastd.clock import SystemClock
from forecastd.fleet.forecast.fleet_forecast import TFT, FleetForecast
from forecastd.fleet.forecast.forecaster import FleetForecaster
from forecastd.supervise.policy import SupervisionPolicy

SERVER_COUNTS = (20, 200, 2000)
TURNS = {20: 7, 200: 5, 2000: 3}
TICKS_PER_TURN = 3  # of ours: it is the shorter one
PAUSE_PER_SERVER = 1.5e-3  # seconds a server between two ticks; 3 of the 5 at 2,000
REQUIRED_SPEEDUP = {20: 20, 200: 20, 2000: 25}  # how many times as fast as the known request
HALF_TICK_SECONDS = 2.5  # seconds
TOLERANCE = 1e-3  # of the quantile range
REQUEST, LIBRARY = "the known daemon's request", "from_dataset + predict alone"
ENGINES = ("fused", "onnx", "stream")  # beside the library's


@dataclass
class ForecastTimings:
    """Seconds at one number of servers: our first forecast, all others of ours, and the request's steps in each turn."""

    first_forecast: float = 0.0
    product: list[float] = field(default_factory=list)
    baseline: list[dict[str, float]] = field(default_factory=list)
    difference: float = 0.0  # of the quantile range, the largest of all turns
    megabytes: tuple[float, float] = (0.0, 0.0)  # of text: ours and the request's
    cpu_seconds: float = 0.0  # seconds of all threads of ours a tick, the pauses included

    @property
    def fastest_request(self) -> dict[str, float]:
        """The steps of the quickest request."""
        return min(self.baseline, key=lambda steps: sum(steps.values()))

    @property
    def fastest_prediction(self) -> float:
        """The quickest data set and prediction."""
        return min(steps["from_dataset and predict"] for steps in self.baseline)


def run(*, quick: bool, seed: int, others: str | None = None) -> Iterator[Figure | PremiseCount]:
    """All numbers of servers; quick: 20, and no engine by itself.

    `others`: the interpreter that has the other libraries, when this one has not.
    """
    counts, product_seconds = SERVER_COUNTS[:1] if quick else SERVER_COUNTS, {}
    for count in counts:
        turns = measure_turns(count, 3 if quick else TURNS[count], seed)
        product_seconds[count] = min(turns.product)
        yield from figures(count, turns)
    if not quick:
        for count in counts:
            yield from compare_engines(count, seed, turns=TURNS[count])
    yield compare_memory(counts[-1], seed)
    yield from peers.run(product_seconds, seed=seed, turns=2 if quick else 3, interpreter=others)


def measure_turns(count: int, turns: int, seed: int) -> ForecastTimings:
    """Ours and the known request in turns, each a tick further on."""
    from benchmarks.fleet import request
    from benchmarks.fleet.library import BaselineLibrary, quantiles_by_server
    from models.fleet.engines import range_difference

    servers, timings = SimulatedServers(count, seed=seed, ahead=1 + turns * TICKS_PER_TURN), ForecastTimings()
    library = BaselineLibrary(MODEL_M, servers.names)
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "m"
        library.write_bundle(bundle)
        with forecaster(bundle) as product:
            timings.first_forecast = time_forecast(product, servers)[0]
            for _ in range(turns):
                cpu_before = cpu_seconds(product)
                for _ in range(TICKS_PER_TURN):
                    servers.advance()
                    time.sleep(PAUSE_PER_SERVER * count)
                    seconds, forecast = time_forecast(product, servers)
                    timings.product.append(seconds)
                time.sleep(PAUSE_PER_SERVER * count)
                timings.cpu_seconds = (cpu_seconds(product) - cpu_before) / TICKS_PER_TURN
                response = request.answer_request(library, servers.records(MODEL_M))
                timings.baseline.append(response.seconds)
                assert (response.index["tick"] == servers.tick + 1).all(), "the library does not forecast the next tick"
                expected = quantiles_by_server(MODEL_M, response.outputs, response.index, forecast.servers)
                actual = forecast.quantiles.transpose(0, 2, 3, 1)
                timings.difference = max(timings.difference, range_difference(actual, expected))
                assert timings.difference <= TOLERANCE, f"the two forecasts differ by {timings.difference:.1e}"
            timings.megabytes = sum(map(len, forecast.encoded)) / 1e6, len(response.text) / 1e6
    return timings


def forecaster(bundle: Path) -> FleetForecaster:
    """As the service runs a bundle: in a supervised child."""
    return FleetForecaster(bundle, policy=SupervisionPolicy(), clock=SystemClock(), engine="auto", threads=THREADS)


def cpu_seconds(product: FleetForecaster) -> float:
    """Seconds of the processors' time, of this process and the model's."""
    import psutil

    processes = [psutil.Process(), *(psutil.Process(int(str(child["pid"]))) for child in product.children())]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def time_forecast(product: FleetForecaster, servers: SimulatedServers) -> tuple[float, FleetForecast]:
    """Seconds from the rolling window to the stored bytes of all servers."""
    started = time.perf_counter()
    forecast = product.forecast(servers.block(MODEL_M.encoder))
    seconds = time.perf_counter() - started
    assert forecast.models == (TFT,) * len(servers.names) == (TFT,) * len(forecast.encoded)
    return seconds, forecast


def figures(count: int, timings: ForecastTimings) -> Iterator[Figure | PremiseCount]:
    """What the turns come to."""
    name, best, steps = f"{count} servers, window to stored JSON", min(timings.product), timings.fastest_request
    total = sum(steps.values())
    yield Figure(name, best, total, "s", REQUEST, f"ratio >= {REQUIRED_SPEEDUP[count]}")
    yield Figure(name, best, timings.fastest_prediction, "s", LIBRARY, "ratio >= 10")
    yield Figure(
        f"{count} servers, the first one", timings.first_forecast, total, "s", REQUEST, "nothing kept yet; no aim"
    )
    if count == SERVER_COUNTS[-1]:
        yield Figure(name, best, HALF_TICK_SECONDS, "s", "half a tick", "ratio >= 1")
    yield Figure(
        f"{count} servers, largest difference of the two forecasts", timings.difference, TOLERANCE, "of the quantile range",
        "allowed", "ratio >= 1",
    )  # fmt: skip
    yield PremiseCount(
        f"{count} servers, the request's steps in the quickest of {len(timings.baseline)} turns, {THREADS} threads",
        {
            **{f"{step}, s": round(seconds, 3) for step, seconds in steps.items()},
            "its text, MB": round(timings.megabytes[1], 1),
            "our stored bytes, MB": round(timings.megabytes[0], 1),
            "ours, slowest tick, s": round(max(timings.product), 3),
            "ours, processors' time a tick, pauses included, s": round(timings.cpu_seconds, 3),
        },
        "both forecast the tick after the last observed one, and say the same of each server",
    )


def compare_engines(count: int, seed: int, turns: int) -> Iterator[Figure | PremiseCount]:
    """Each engine without supervision, beside the library's forward as an engine, in a process of their own."""
    seconds = run_side("engines", count, seed, str(turns))
    for name in ENGINES:
        yield Figure(
            f"{count} servers, engine {name} in process", seconds[name], seconds["library"], "s", "engine library",
            "scaled, run, restored, as JSON; no aim",
        )  # fmt: skip
    yield Figure(
        f"{count} servers, engine stream, the first one", seconds["stream, first"], seconds["library, first"], "s",
        "engine library", "no aim",
    )  # fmt: skip


def compare_memory(count: int, seed: int) -> Figure:
    """Peak resident memory; ours is the sum of the parent's and the child's peaks."""
    product, library = (run_side(role, count, seed) for role in ("ours", "library"))
    return Figure(
        f"{count} servers, peak memory, parent and child", product["megabytes"], library["megabytes"], "MB", LIBRARY,
        "ratio >= 2" if count == SERVER_COUNTS[-1] else f"asked for at {SERVER_COUNTS[-1]:,} only",
    )  # fmt: skip


def run_side(role: str, count: int, seed: int, *extra: str) -> dict[str, float]:
    """What one side measures of itself in a fresh process."""
    arguments = python("-m", "benchmarks.fleet.side", role, str(bundle_m()), str(count), str(seed), *extra)
    result: dict[str, float] = json.loads(measure(arguments).stdout)
    return result
