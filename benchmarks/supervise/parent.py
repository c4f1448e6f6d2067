"""A parent of its own, for what can only be measured in a fresh process: memory, processor time, what is imported.

`supervised STANDBYS FORECASTS SECONDS` makes forecasts in children and then waits; `alone FORECASTS` makes them in this
process, without supervision; `beside FORECASTS` asks both in turns. Each prints one JSON object.
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
from forecastd.candles import Candles
from forecastd.clock import SystemClock, from_iso
from forecastd.features import model_input, parse_features
from forecastd.forecaster import Forecaster, needed_candles
from forecastd.sources.sample import SampleSource
from forecastd.supervise.policy import Policy
from forecastd.window import RollingWindow, refresh
from models.bundle import load_bundle
from models.engines import load_engine, verify_canary
from models.manifest import Manifest

NOW = from_iso("2026-03-01T00:30:00Z")
HEAVY = ("torch", "lightning", "pytorch_forecasting", "pandas")


@dataclass(frozen=True)
class Process:
    """One process: its peak and its share of memory in MB, and the processor seconds an hour that it takes to wait."""

    peak: float
    share: float
    idle: float


@dataclass(frozen=True)
class Told:
    """What was found. `launches`, `reads`, `mapped`: what the forecasts of ready children cost in new processes, in reading
    system calls of theirs, and in libraries they mapped. `heavy`: what the parent has imported and should not."""

    processes: tuple[Process, ...]
    heavy: tuple[str, ...]
    launches: int = 0
    reads: int = 0
    mapped: int = 0


def supervised(standbys: int, forecasts: int, seconds: float) -> Told:
    """The parent as the daemon has it. Its own process comes first, then its children."""
    with Forecaster(BUNDLE, policy=Policy(standbys=standbys), clock=SystemClock()) as forecaster:
        forecaster.check()
        candles = _candles(forecaster.manifest)
        never = Event()
        while [child["phase"] for child in forecaster.children()] != ["idle"] * (1 + standbys):
            never.wait(0.05)
        pids = [int(str(child["pid"])) for child in forecaster.children()]
        before = forecaster.counts.launches, _reads(pids), _mapped(pids)
        for _ in range(forecasts):
            forecaster.forecast(candles)
        after = forecaster.counts.launches, _reads(pids), _mapped(pids)
        processes = _waiting(["self", *map(str, pids)], seconds)
    return Told(processes, _heavy(), after[0] - before[0], after[1] - before[1], len(after[2] - before[2]))


def alone(forecasts: int) -> Told:
    """The same forecasts in this process."""
    bundle = load_bundle(BUNDLE)
    manifest, engine = bundle.manifest, load_engine(bundle)
    verify_canary(bundle, engine)
    features = parse_features((*manifest.past, *manifest.known), "The bundle")
    candles = _candles(manifest)
    for _ in range(forecasts + 1):
        engine.predict(model_input(features, candles, manifest.encoder_length, manifest.horizon))
    return Told(_waiting(["self"], 0.0), _heavy())


def beside(forecasts: int) -> dict[str, list[float]]:
    """Milliseconds of each forecast by the engine in this process, and by a ready child."""
    from benchmarks.supervise.scene import Record, open_pool, questions
    from forecastd.supervise.detector import Limits

    [question] = questions(1, 0)
    engine = load_engine(load_bundle(BUNDLE))
    times: dict[str, list[float]] = {"in process": [], "supervised": []}
    with open_pool(Record(), Limits()) as pool:
        for _ in range(3):
            pool.run(question.job("first"))
            engine.predict(question.inputs)
        for _ in range(forecasts):
            _timed(times["in process"], lambda: engine.predict(question.inputs))
            _timed(times["supervised"], lambda: pool.run(question.job("overhead")))
    return times


def _timed(times: list[float], work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    times.append(1000 * (time.perf_counter() - start))


def _candles(manifest: Manifest) -> Candles:
    needed = needed_candles(manifest)
    with tempfile.TemporaryDirectory() as place:
        window = RollingWindow.open(Path(place) / "window.sqlite")
        try:
            return refresh(window, SampleSource("btcusd", 0), now=NOW, length=needed)
        finally:
            window.close()


def _waiting(pids: Sequence[str], seconds: float) -> tuple[Process, ...]:
    """What each process has in memory, and takes of the processor while all of them wait for `seconds`."""
    before = [_processor(pid) for pid in pids]
    Event().wait(seconds)
    used = [_processor(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    return tuple(
        Process(_megabytes(pid, "status", "VmHWM"), _megabytes(pid, "smaps_rollup", "Pss"), 3600 * one / (seconds or 1))
        for pid, one in zip(pids, used, strict=True)
    )


def _processor(pid: str) -> float:
    """Processor seconds of all threads, from the process's own clock; what `/proc` tells of them is in ticks of 10 ms."""
    if pid == "self":
        return time.process_time()
    return time.clock_gettime((~int(pid) << 3) | 2)  # clock_getcpuclockid(3), as the kernel encodes it


def _megabytes(pid: str, file: str, field: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _reads(pids: Sequence[int]) -> int:
    """How often the processes have read from a file; a socket is read in another way."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/io").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("syscr:"))


def _mapped(pids: Sequence[int]) -> set[tuple[int, str]]:
    """The files that the processes have mapped: their libraries."""
    lines = [(pid, line) for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {(pid, line.split(maxsplit=5)[5]) for pid, line in lines if "/" in line}


def _heavy() -> tuple[str, ...]:
    return tuple(name for name in HEAVY if name in sys.modules)


def main() -> None:
    how, *numbers = sys.argv[1:]
    if how == "supervised":
        print(json.dumps(asdict(supervised(int(numbers[0]), int(numbers[1]), float(numbers[2])))))
    elif how == "alone":
        print(json.dumps(asdict(alone(int(numbers[0])))))
    else:
        print(json.dumps(beside(int(numbers[0]))))


if __name__ == "__main__":
    main()
