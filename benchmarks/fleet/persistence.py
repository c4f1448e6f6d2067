"""What keeping the window costs at each tick: ours, one small append, beside writing the whole window anew.

Ours is measured with a store that holds a full window, on the file system of the temporary directory, as the service calls
it. The others are the ways of programs that keep their window in one file: a pickle of the records, and a Parquet file.
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

from benchmarks.figures import Count, Figure
from benchmarks.fleet.scene import KEEP, STEP, Servers
from forecastd.fleet.contract import NAMES
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.store import TickStore

COUNTS = (20, 2000)
TICKS = {20: 400, 2000: 150}
WHOLE = {20: 9, 2000: 3}  # times that the whole window is written


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """20 and 2,000 servers; quick: 20 and few ticks."""
    for count in COUNTS[:1] if quick else COUNTS:
        with tempfile.TemporaryDirectory() as place:
            yield from compare(count, Path(place), 60 if quick else TICKS[count], 3 if quick else WHOLE[count], seed)


def compare(count: int, place: Path, ticks: int, times: int, seed: int) -> Iterator[Figure | Count]:
    """A store that is appended to for so many ticks, and its window written whole so many times."""
    servers = Servers(count, seed=seed, ahead=ticks)
    path = place / "window.sqlite"
    with TickStore(path, step=STEP) as store:
        for tick in range(servers.tick - KEEP + 1, servers.tick + 1):
            assert store.append(servers.rows(tick), float(tick * STEP))
        servers.window.unsaved()
        appends = [append(servers, store) for _ in range(ticks)]
        back = FleetWindow(STEP, KEEP, count)
        report = store.load(back, float((servers.tick + 1) * STEP))
    newest = back.block(servers.tick, KEEP)
    assert report.rows == count * KEEP == len(newest.servers) * KEEP, "the store did not give the window back"
    assert np.array_equal(newest.values, servers.block(KEEP).values), "the store gave another window back"
    rows = [dict(zip(NAMES, row, strict=True)) for row in servers.block(KEEP).values.reshape(-1, len(NAMES)).tolist()]
    median, worst = statistics.median(appends), float(np.percentile(appends, 99))
    for name, write in (("the whole window as a pickle", as_pickle), ("the whole window as Parquet", as_parquet)):
        seconds = [timed(lambda write=write: write(place / "window", rows)) for _ in range(times)]  # type: ignore[misc]
        yield Figure(
            f"{count} servers, kept at each tick, median", 1e3 * median, 1e3 * statistics.median(seconds), "ms", name,
            "no aim",
        )  # fmt: skip
        if name.endswith("pickle"):
            size = (place / "window").stat().st_size
    yield Count(
        f"{count} servers, {ticks} appends of one tick after {KEEP} others",
        {
            "median, ms": round(1e3 * median, 3), "99th percentile, ms": round(1e3 * worst, 3),
            "longest, ms": round(1e3 * max(appends), 3), "bytes a tick": path.stat().st_size // (KEEP + ticks),
            "bytes of the pickle that would be written instead": size,
        },
        "what is loaded again is the window, number by number",
    )  # fmt: skip


def append(servers: Servers, store: TickStore) -> float:
    """A tick comes and is closed; the seconds that keeping it took."""
    servers.move_on()

    def keep() -> None:
        assert store.append(servers.window.unsaved(), float((servers.tick + 1) * STEP))

    return timed(keep)


def as_pickle(path: Path, rows: list[dict[str, float]]) -> None:
    """As the known daemon kept its records."""
    with path.open("wb") as file:
        pickle.dump(rows, file, protocol=pickle.HIGHEST_PROTOCOL)


def as_parquet(path: Path, rows: list[dict[str, float]]) -> None:
    """By way of a table made of the records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
