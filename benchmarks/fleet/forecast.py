"""The forecast of all servers, from the rolling window to the served bytes: this product and the usual ways.

Both sides use the same network with the same weights and the same rows, and their forecasts are compared before any
time is reported. They run in turns, and the best turn of each counts, because other load on the machine can only slow
a turn down. Between two ticks there is a pause, as in the service but shorter; the CPU time of the product includes
its work in the pause.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

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
TICKS_PER_TURN = 3  # of the product, which is faster
PAUSE_PER_SERVER = 1.5e-3  # seconds per server between two ticks; 3 of the 5 s at 2,000 servers
REQUIRED_SPEEDUP = {20: 20, 200: 20, 2000: 25}  # compared with the request of the reference daemon
HALF_TICK_SECONDS = 2.5
TOLERANCE = 1e-3  # of the quantile range
REQUEST, LIBRARY = "the reference daemon's request", "from_dataset + predict alone"
ENGINES = ("fused", "onnx", "stream")  # compared with the library engine


@dataclass
class ForecastTimings:
    """Seconds for one number of servers: the product's first and later forecasts, and the steps of each baseline
    request.
    """

    first_forecast: float = 0.0
    product: list[float] = field(default_factory=list)
    baseline: list[dict[str, float]] = field(default_factory=list)
    difference: float = 0.0  # of the quantile range, maximum over the turns
    megabytes: tuple[float, float] = (0.0, 0.0)  # of text: product and baseline
    cpu_seconds: float = 0.0  # of all threads of the product per tick, including pauses

    @property
    def fastest_request(self) -> dict[str, float]:
        """The steps of the fastest baseline request."""
        return min(self.baseline, key=lambda steps: sum(steps.values()))

    @property
    def fastest_prediction(self) -> float:
        """The fastest data set and prediction of the baseline."""
        return min(steps["from_dataset and predict"] for steps in self.baseline)


def run(*, quick: bool, seed: int, others: str | None = None) -> Iterator[Figure | PremiseCount]:
    """All server counts; quick: 20 servers, and no single engines.

    `others`: the interpreter that has the other libraries, if this one does not.
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
    """The product and the baseline request in turns, each one tick later."""
    from benchmarks.fleet import request
    from benchmarks.fleet.library import BaselineLibrary, quantiles_by_server
    from models.bundle.canary import range_difference

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
    """A forecaster as the service runs it: in a supervised child."""
    return FleetForecaster(bundle, policy=SupervisionPolicy(), clock=SystemClock(), engine="auto", threads=THREADS)


def cpu_seconds(product: FleetForecaster) -> float:
    """CPU seconds of this process and the model's processes."""
    processes = [psutil.Process(), *(psutil.Process(int(str(child["pid"]))) for child in product.children())]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def time_forecast(product: FleetForecaster, servers: SimulatedServers) -> tuple[float, FleetForecast]:
    """Seconds from the rolling window to the stored bytes of all servers, and the forecast."""
    started = time.perf_counter()
    forecast = product.forecast(servers.block(MODEL_M.encoder))
    seconds = time.perf_counter() - started
    assert forecast.models == (TFT,) * len(servers.names) == (TFT,) * len(forecast.encoded)
    return seconds, forecast


def figures(count: int, timings: ForecastTimings) -> Iterator[Figure | PremiseCount]:
    """The results of the turns."""
    name, best, steps = f"{count} servers, window to stored JSON", min(timings.product), timings.fastest_request
    total = sum(steps.values())
    yield Figure(name, best, total, "s", REQUEST, f"ratio >= {REQUIRED_SPEEDUP[count]}")
    yield Figure(name, best, timings.fastest_prediction, "s", LIBRARY, "ratio >= 10")
    yield Figure(
        f"{count} servers, first forecast", timings.first_forecast, total, "s", REQUEST, "nothing cached; no target"
    )
    if count == SERVER_COUNTS[-1]:
        yield Figure(name, best, HALF_TICK_SECONDS, "s", "half a tick", "ratio >= 1")
    yield Figure(
        f"{count} servers, largest difference of the two forecasts", timings.difference, TOLERANCE, "of the quantile range",
        "allowed", "ratio >= 1",
    )  # fmt: skip
    yield PremiseCount(
        f"{count} servers, steps of the fastest of {len(timings.baseline)} baseline requests, {THREADS} threads",
        {
            **{f"{step}, s": round(seconds, 3) for step, seconds in steps.items()},
            "baseline text, MB": round(timings.megabytes[1], 1),
            "product stored bytes, MB": round(timings.megabytes[0], 1),
            "product, slowest tick, s": round(max(timings.product), 3),
            "product, CPU time per tick including pauses, s": round(timings.cpu_seconds, 3),
        },
        "both forecast the tick after the last observed one, with equal results for each server",
    )


def compare_engines(count: int, seed: int, turns: int) -> Iterator[Figure | PremiseCount]:
    """Each engine without supervision, compared with the library as an engine, in a fresh process."""
    seconds = run_side("engines", count, seed, str(turns))
    for name in ENGINES:
        yield Figure(
            f"{count} servers, engine {name} in process", seconds[name], seconds["library"], "s", "engine library",
            "scaled, run, unscaled, as JSON; no target",
        )  # fmt: skip
    yield Figure(
        f"{count} servers, engine stream, first forecast", seconds["stream, first"], seconds["library, first"], "s",
        "engine library", "no target",
    )  # fmt: skip


def compare_memory(count: int, seed: int) -> Figure:
    """Peak resident memory; for the product the sum of parent and child."""
    product, library = (run_side(role, count, seed) for role in ("product", "library"))
    return Figure(
        f"{count} servers, peak memory, parent and child", product["megabytes"], library["megabytes"], "MB", LIBRARY,
        "ratio >= 2" if count == SERVER_COUNTS[-1] else f"a target at {SERVER_COUNTS[-1]:,} only",
    )  # fmt: skip


def run_side(role: str, count: int, seed: int, *extra: str) -> dict[str, float]:
    """What one side measures about itself in a fresh process."""
    arguments = python("-m", "benchmarks.fleet.side", role, str(bundle_m()), str(count), str(seed), *extra)
    result: dict[str, float] = json.loads(measure(arguments).stdout)
    return result
