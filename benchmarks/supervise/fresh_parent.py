"""A parent process for measurements that need a fresh one: memory, CPU time, imports.

`supervised STANDBYS FORECASTS SECONDS` makes forecasts in children and then idles; `unsupervised FORECASTS` makes them in
this process; `compare FORECASTS` does both in turns. Each prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from benchmarks.forecast import BUNDLE
from forecastd.clock import SystemClock, from_iso
from forecastd.inference.forecaster import Forecaster, required_candles
from forecastd.market.candles import Candles
from forecastd.market.features import build_model_input, parse_features
from forecastd.market.sources.sample import SampleSource
from forecastd.market.window import RollingWindow, refresh
from forecastd.supervise.policy import SupervisionPolicy
from models.market.bundle import load_market_bundle
from models.market.engine import MarketEngine, verify_market_canary
from models.market.manifest import MarketManifest

NOW = from_iso("2026-03-01T00:30:00Z")
HEAVY_MODULES = ("torch", "lightning", "pytorch_forecasting", "pandas")


@dataclass(frozen=True)
class ProcessCost:
    """One process: its peak and proportional share of memory in MB, and the CPU seconds per hour that it uses while idle."""

    peak: float
    share: float
    idle: float


@dataclass(frozen=True)
class ParentReport:
    """The measurements. `launches`, `reads`, `mapped`: new processes, read system calls and mapped files during forecasts of
    ready children. `heavy`: heavy modules that the parent has imported."""

    processes: tuple[ProcessCost, ...]
    heavy: tuple[str, ...]
    launches: int = 0
    reads: int = 0
    mapped: int = 0


def run_supervised(standbys: int, forecasts: int, seconds: float) -> ParentReport:
    """The parent as in the daemon. Its own process comes first, then its children."""
    with Forecaster(BUNDLE, policy=SupervisionPolicy(standbys=standbys), clock=SystemClock()) as forecaster:
        forecaster.check()
        candles = _load_candles(forecaster.manifest)
        never = Event()
        while [child["phase"] for child in forecaster.children()] != ["idle"] * (1 + standbys):
            never.wait(0.05)
        pids = [int(str(child["pid"])) for child in forecaster.children()]
        before = forecaster.counts.launches, _count_reads(pids), _mapped_files(pids)
        for _ in range(forecasts):
            forecaster.forecast(candles)
        after = forecaster.counts.launches, _count_reads(pids), _mapped_files(pids)
        processes = _measure_idle(["self", *map(str, pids)], seconds)
    return ParentReport(
        processes, _heavy_imports(), after[0] - before[0], after[1] - before[1], len(after[2] - before[2])
    )


def run_unsupervised(forecasts: int) -> ParentReport:
    """The same forecasts in this process, without supervision."""
    bundle = load_market_bundle(BUNDLE)
    manifest, engine = bundle.manifest, MarketEngine(bundle)
    verify_market_canary(bundle, engine)
    features = parse_features((*manifest.past, *manifest.known), "The bundle")
    candles = _load_candles(manifest)
    for _ in range(forecasts + 1):
        engine.predict(build_model_input(features, candles, manifest.encoder_length, manifest.horizon))
    return ParentReport(_measure_idle(["self"], 0.0), _heavy_imports())


def compare_calls(forecasts: int) -> dict[str, list[float]]:
    """Milliseconds of each forecast by the engine in this process, and by a ready child."""
    # Imported here, because the other modes measure a process that has imported nothing more than the daemon.
    from benchmarks.supervise.common import make_expected_forecasts, open_pool
    from forecastd.supervise.detector import PhaseLimits
    from tests.support.supervision import EventLog

    [expected] = make_expected_forecasts(1, 0)
    engine = MarketEngine(load_market_bundle(BUNDLE))
    times: dict[str, list[float]] = {"in process": [], "supervised": []}
    with open_pool(EventLog(), PhaseLimits()) as pool:
        for _ in range(3):
            pool.run(expected.job("first"))
            engine.predict(expected.inputs)
        for _ in range(forecasts):
            _append_time(times["in process"], lambda: engine.predict(expected.inputs))
            _append_time(times["supervised"], lambda: pool.run(expected.job("overhead")))
    return times


def _append_time(times: list[float], work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    times.append(1000 * (time.perf_counter() - start))


def _load_candles(manifest: MarketManifest) -> Candles:
    required = required_candles(manifest)
    with tempfile.TemporaryDirectory() as directory:
        window = RollingWindow.open(Path(directory) / "window.sqlite")
        try:
            return refresh(window, SampleSource("btcusd", 0), now=NOW, length=required)
        finally:
            window.close()


def _measure_idle(pids: Sequence[str], seconds: float) -> tuple[ProcessCost, ...]:
    """Memory of each process, and its CPU time while all of them idle for `seconds`."""
    before = [_cpu_seconds(pid) for pid in pids]
    Event().wait(seconds)
    used = [_cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    return tuple(
        ProcessCost(
            _megabytes(pid, "status", "VmHWM"), _megabytes(pid, "smaps_rollup", "Pss"), 3600 * cpu / (seconds or 1)
        )
        for pid, cpu in zip(pids, used, strict=True)
    )


def _cpu_seconds(pid: str) -> float:
    """CPU seconds of all threads, from the process's own clock; `/proc` has ticks of 10 ms only."""
    if pid == "self":
        return time.process_time()
    return time.clock_gettime((~int(pid) << 3) | 2)  # clock_getcpuclockid(3), as the kernel encodes it


def _megabytes(pid: str, file: str, field: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _count_reads(pids: Sequence[int]) -> int:
    """The number of read system calls of the processes, without sockets."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/io").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("syscr:"))


def _mapped_files(pids: Sequence[int]) -> set[tuple[int, str]]:
    """The files that the processes have mapped, mostly libraries."""
    lines = [(pid, line) for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {(pid, line.split(maxsplit=5)[5]) for pid, line in lines if "/" in line}


def _heavy_imports() -> tuple[str, ...]:
    return tuple(name for name in HEAVY_MODULES if name in sys.modules)


def main() -> None:
    mode, *arguments = sys.argv[1:]
    if mode == "supervised":
        print(json.dumps(asdict(run_supervised(int(arguments[0]), int(arguments[1]), float(arguments[2])))))
    elif mode == "unsupervised":
        print(json.dumps(asdict(run_unsupervised(int(arguments[0])))))
    else:
        print(json.dumps(compare_calls(int(arguments[0]))))


if __name__ == "__main__":
    main()
