"""The cost of saving the window at each tick: one small append, compared with writing the whole window.

The store has a full window, on the file system of the temporary directory, and is called as by the service. The
alternatives are those of programs that save their window in one file: a pickle of records, and a Parquet file.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet.scene import STEP, WINDOW_TICKS, SimulatedServers
from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.window.store import TickStore
from forecastd.fleet.window.window import FleetWindow

SERVER_COUNTS = (20, 2000)
TICKS = {20: 400, 2000: 150}
FULL_WRITES = {20: 9, 2000: 3}  # number of full writes


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """20 and 2,000 servers; quick: 20, and few ticks."""
    for count in SERVER_COUNTS[:1] if quick else SERVER_COUNTS:
        with tempfile.TemporaryDirectory() as directory:
            yield from compare_writes(
                count, Path(directory), 60 if quick else TICKS[count], 3 if quick else FULL_WRITES[count], seed
            )


def compare_writes(count: int, directory: Path, ticks: int, times: int, seed: int) -> Iterator[Figure | PremiseCount]:
    """Append so many ticks to a store, and write its whole window so many times."""
    servers = SimulatedServers(count, seed=seed, ahead=ticks)
    path = directory / "window.sqlite"
    with TickStore(path, step=STEP) as store:
        for tick in range(servers.tick - WINDOW_TICKS + 1, servers.tick + 1):
            assert store.append(servers.rows(tick), float(tick * STEP))
        servers.window.unsaved()
        appends = [append_tick(servers, store) for _ in range(ticks)]
        restored = FleetWindow(STEP, WINDOW_TICKS, count)
        report = store.load(restored, float((servers.tick + 1) * STEP))
    newest = restored.block(servers.tick, WINDOW_TICKS)
    assert report.rows == count * WINDOW_TICKS == len(newest.servers) * WINDOW_TICKS, (
        "the store did not restore the window"
    )
    assert np.array_equal(newest.values, servers.block(WINDOW_TICKS).values), "the store restored another window"
    rows = [
        dict(zip(METRIC_NAMES, row, strict=True))
        for row in servers.block(WINDOW_TICKS).values.reshape(-1, len(METRIC_NAMES)).tolist()
    ]
    median, worst = statistics.median(appends), float(np.percentile(appends, 99))
    for name, write in (("the whole window as a pickle", write_pickle), ("the whole window as Parquet", write_parquet)):
        seconds = [time_call(lambda write=write: write(directory / "window", rows)) for _ in range(times)]  # type: ignore[misc]
        yield Figure(
            f"{count} servers, saved at each tick, median", 1e3 * median, 1e3 * statistics.median(seconds), "ms", name,
            "no target",
        )  # fmt: skip
        if name.endswith("pickle"):
            size = (directory / "window").stat().st_size
    yield PremiseCount(
        f"{count} servers, {ticks} appends of one tick after {WINDOW_TICKS} others",
        {
            "median, ms": round(1e3 * median, 3), "99th percentile, ms": round(1e3 * worst, 3),
            "longest, ms": round(1e3 * max(appends), 3), "bytes per tick": path.stat().st_size // (WINDOW_TICKS + ticks),
            "bytes of the pickle": size,
        },
        "the restored window is equal, value by value",
    )  # fmt: skip


def append_tick(servers: SimulatedServers, store: TickStore) -> float:
    """Close a tick and save it; returns the seconds of saving."""
    servers.advance()

    def keep() -> None:
        assert store.append(servers.window.unsaved(), float((servers.tick + 1) * STEP))

    return time_call(keep)


def write_pickle(path: Path, rows: list[dict[str, float]]) -> None:
    """As the reference daemon saves its records."""
    with path.open("wb") as file:
        pickle.dump(rows, file, protocol=pickle.HIGHEST_PROTOCOL)


def write_parquet(path: Path, rows: list[dict[str, float]]) -> None:
    """Through a table made of the records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def time_call(work: Callable[[], Any]) -> float:
    """The seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
