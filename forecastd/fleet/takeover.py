"""Takes over the window that another program has pickled: its rows, under the contract's names, into the store.

The one thing to know before changing it: what the file says is believed as little as what a sender says. A child process
reads it (`oldpickle`), every row is judged as a feed's is, and what the store already has of a server and tick stays as it
is, so that taking the same file over twice is the same as once.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from forecastd.clock import iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.contract import NAMES, PROFILE, STATUSES
from forecastd.fleet.intake import Refusals, Rows, admit, check
from forecastd.fleet.store import TickStore
from forecastd.supervise.process import child_environment

BATCH = 2_000  # rows that are judged at once
MOST_ROWS = 5_000_000
DEADLINE = 900.0  # seconds for the child that reads the file
MOST_LINE = 1 << 20
MOST_NAMES = 1_000  # of numbers that are no metric's, that are told
TICKS = 100  # that are written in one transaction
_NAIVE = re.compile(r"(?<!Z)(?<![+-]\d\d:\d\d)(?<![+-]\d{4})$")

# Names that other programs have for the same thing.
_NAMES: dict[str, str] = {
    "cpu_percent": "cpu cpu_pct cpu_usage cpu_usage_pct cpu_used_pct cpu_util cpu_usage_percent",
    "cpu_iowait_percent": "iowait iowait_pct cpu_iowait cpu_iowait_pct",
    "memory_percent": "memory mem mem_pct mem_percent mem_used_pct memory_pct memory_usage memory_used_pct",
    "swap_percent": "swap swap_pct swap_used_pct swap_usage",
    "disk_percent": "disk disk_pct disk_usage disk_usage_pct disk_used_pct",
    "disk_busy_percent": "disk_busy_pct disk_util disk_util_pct",
    "disk_latency_ms": "disk_await_ms disk_wait_ms",
    "network_in_mb_s": "net_in_mb_s network_in_mbs",
    "network_out_mb_s": "net_out_mb_s network_out_mbs",
    "latency_ms": "latency response_time_ms",
    "requests_per_s": "rps requests_per_second",
    "error_percent": "error_pct error_rate_pct",
}
ALIASES = {name: metric for metric, names in _NAMES.items() for name in names.split()}
IDLE = frozenset({"cpu_idle_pct", "cpu_idle_percent"})  # 100 minus this is `cpu_percent`
STATES = {
    "offline": "down", "critical": "degraded", "critical_issue": "degraded", "warning": "degraded", "degrading": "degraded",
}  # fmt: skip


@dataclass(frozen=True)
class TakenOver:
    """What became of a file."""

    found: int  # rows in it
    taken: int  # that are in the store now, or would be
    known: int  # that the store had already, or that were in the file more than once
    refusals: Refusals
    servers: tuple[str, ...]  # of those taken
    first: float | None  # unix time of the oldest row taken
    last: float | None
    other_names: Counter[str]  # numbers under names that are no metric's
    naive: int  # times without an offset, taken as UTC

    def as_json(self) -> dict[str, Any]:
        """As `fleet import --json` prints it."""
        return {
            "found": self.found,
            "taken": self.taken,
            "known": self.known,
            "refused": self.refusals.total,
            "servers": list(self.servers),
            "first": None if self.first is None else iso(self.first),
            "last": None if self.last is None else iso(self.last),
            "counts": dict(self.refusals.counts),
            "reasons": [vars(one) for one in self.refusals.first],
            "left_out": dict(self.other_names),
            "times_without_offset": self.naive,
        }


def take_over(
    path: Path,
    store: TickStore,
    *,
    now: float,
    max_skew: float,
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> TakenOver:
    """Read the pickle at `path` and put its rows into the store, unless `dry_run`. Nothing of the file is run.

    `names`: the contract's names for the file's; `units`: units of the contract's metrics, as in a feed.

    Raises:
        NeedsHuman: the file is refused, or has no row that can be used.
        RetryLater: the store cannot be written.
        FeedError: `units` names a metric or a unit that is not known.
    """
    translation = {
        **(names or {}),
        **{name: name for name in NAMES},
        **ALIASES,
        **(names or {}),
    }  # in order of preference
    refusals, other, naive, found = Refusals(), Counter[str](), 0, 0
    keep = int(store.hours * 3600 // store.step)
    parts: list[Rows] = []
    with _lines(path) as lines:
        while batch := [from_json(line, allow_inf_nan=True) for line in islice(lines, BATCH)]:
            naive += sum(isinstance(one.get("time"), str) and _NAIVE.search(one["time"]) is not None for one in batch)
            translated = [_translated(one, translation, other) for one in batch]
            judged = check(translated, step=store.step, units=dict(units or {}), first=found)
            found += len(batch)
            refusals.merge(judged.refusals)
            parts.append(admit(judged.rows, refusals, now=now, step=store.step, keep=keep, max_skew=max_skew))
            if found > MOST_ROWS:
                raise NeedsHuman(f"{path} has more than {MOST_ROWS} rows. Take over a smaller part of it.")
    rows = _once(Rows.joined(parts))
    new = rows.take(~_known(store, rows))
    if not len(rows):
        why = f": {refusals.first[0].reason}" if refusals.first else ""
        raise NeedsHuman(f"{path} has no row that can be used, of {found}{why}.")
    if not dry_run:
        _write(store, new, now)
    usable = found - refusals.total
    times = new.times.tolist()
    return TakenOver(
        found, len(new), usable - len(new), refusals, tuple(sorted(set(new.servers))), min(times, default=None),
        max(times, default=None), other, naive,
    )  # fmt: skip


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines that the child prints; the child ends with the block."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "forecastd.fleet.oldpickle", str(path.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        cwd="/",
    )
    late = threading.Timer(DEADLINE, child.kill)
    late.start()
    with child:
        out, err = cast("IO[bytes]", child.stdout), cast("IO[bytes]", child.stderr)
        try:
            yield iter(lambda: out.readline(MOST_LINE), b"")
            told = err.read(4_000).decode(errors="replace").strip()
            child.wait()
        finally:
            late.cancel()
            child.kill()
    if child.returncode < 0:
        told = f"reading it ended the process that did (signal {-child.returncode}), so it may be a bomb"
    if child.returncode:
        raise NeedsHuman(f"{path} is refused: {told}.")


def _translated(record: dict[str, Any], names: Mapping[str, str], other: Counter[str]) -> dict[str, Any]:
    """A record under the contract's names."""
    found: dict[str, Any] = record.get("metrics", {})
    metrics: dict[str, Any] = {}
    for name, metric in names.items():
        if found.get(name) is not None and metric not in metrics:
            metrics[metric] = found[name]
    for name, value in found.items():
        if name in IDLE and "cpu_percent" not in metrics and _is_number(value):
            metrics["cpu_percent"] = 100.0 - value
        elif name not in names and _is_number(value) and (name in other or len(other) < MOST_NAMES):
            other[name] += 1
    profile = re.sub(r"[^a-z0-9_-]+", "_", str(record.get("profile") or "").lower())
    status = str(record.get("status") or "").lower()
    return {
        "server": record.get("server"),
        "time": record.get("time"),
        "profile": profile if PROFILE.fullmatch(profile) else None,
        "status": status if status in STATUSES else STATES.get(status),
        "metrics": metrics,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _once(rows: Rows) -> Rows:
    """Of each server and tick the newest row, sorted by tick."""
    order = np.lexsort((rows.times, _codes(rows), rows.ticks))
    rows = rows.at(order)
    codes = _codes(rows)
    last = np.append((np.diff(rows.ticks) != 0) | (np.diff(codes) != 0), True)[: len(rows)]
    return rows.take(last)


def _codes(rows: Rows) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(server, len(numbers)) for server in rows.servers], dtype=np.int64)


def _known(store: TickStore, rows: Rows) -> NDArray[np.bool_]:
    """Which of the rows' servers and ticks the store has."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    there: set[tuple[str, int]] = set()
    for chunk in store.history(
        float(rows.times.min()) - store.step, float(rows.times.max()) + store.step, metrics=NAMES[:1]
    ):
        there.update(zip(chunk.servers, np.floor(chunk.times / store.step).astype(np.int64).tolist(), strict=True))
    return np.array([one in there for one in zip(rows.servers, rows.ticks.tolist(), strict=True)], dtype=np.bool_)


def _write(store: TickStore, rows: Rows, now: float) -> None:
    ticks = np.unique(rows.ticks)
    for at in range(0, len(ticks), TICKS):
        some = (rows.ticks >= ticks[at]) & (rows.ticks <= ticks[min(at + TICKS, len(ticks)) - 1])
        if not store.append(rows.take(some), now):
            raise RetryLater(f"{store.path} cannot be written: {store.problem}. What was taken over so far stays.")
