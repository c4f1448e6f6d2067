"""Imports a window that another program has pickled: stores its rows under the contract's names.

Invariant: the file is trusted as little as a sender is. A child process reads it (`pickle_reader`), every row is
validated like a feed record, and rows of a server and tick that the store has already stay unchanged, so importing a
file twice is the same as once.
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

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.contract import METRIC_NAMES, PROFILE_PATTERN, STATUSES
from forecastd.fleet.ingest.feed import FleetRows, RowRefusals, check_records, filter_by_time
from forecastd.fleet.window.store import TickStore
from forecastd.supervise.process import child_environment

BATCH_ROWS = 2_000  # rows that are validated at once
MAX_ROWS = 5_000_000
READ_TIMEOUT_SECONDS = 900.0  # for the child that reads the file
MAX_LINE_BYTES = 1 << 20
MAX_UNKNOWN_NAMES = 1_000  # unknown metric names that are counted
TICKS_PER_WRITE = 100  # written in one transaction
_NO_OFFSET_PATTERN = re.compile(r"(?<!Z)(?<![+-]\d\d:\d\d)(?<![+-]\d{4})$")

# Names that other programs use for the metrics of the contract.
_ALIASES_BY_METRIC: dict[str, str] = {
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
ALIASES = {name: metric for metric, names in _ALIASES_BY_METRIC.items() for name in names.split()}
IDLE_NAMES = frozenset({"cpu_idle_pct", "cpu_idle_percent"})  # 100 minus this is `cpu_percent`
STATUS_ALIASES = {
    "offline": "down", "critical": "degraded", "critical_issue": "degraded", "warning": "degraded", "degrading": "degraded",
}  # fmt: skip


@dataclass(frozen=True)
class ImportReport:
    """The result of an import."""

    rows: int  # rows in the file
    imported: int  # new rows in the store, or in a dry run those that would be
    duplicates: int  # rows that the store had already, or that were in the file more than once
    refusals: RowRefusals
    servers: tuple[str, ...]  # of the imported rows
    first: float | None  # unix time of the oldest imported row
    last: float | None
    unknown_metrics: Counter[str]  # numbers under names that are not a metric
    times_without_offset: int  # rows whose time has no offset, read as UTC

    def as_json(self) -> dict[str, Any]:
        """The output of `fleet import --json`."""
        return {
            "rows": self.rows,
            "imported": self.imported,
            "duplicates": self.duplicates,
            "refused": self.refusals.total,
            "servers": list(self.servers),
            "first": None if self.first is None else to_iso(self.first),
            "last": None if self.last is None else to_iso(self.last),
            "counts": dict(self.refusals.counts),
            "reasons": [vars(refusal) for refusal in self.refusals.first],
            "unknown_metrics": dict(self.unknown_metrics),
            "times_without_offset": self.times_without_offset,
        }


def import_pickle(
    path: Path,
    store: TickStore,
    *,
    now: float,
    max_skew: float,
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> ImportReport:
    """Read the pickle at `path` and store its rows, unless `dry_run`. Nothing in the file is run.

    `names`: the contract's names for names in the file; `units`: the units of metrics, as in a feed.

    Raises:
        NeedsHuman: the file is refused, or has no usable row.
        RetryLater: the store cannot be written.
        FeedError: `units` names an unknown metric or unit.
    """
    metric_by_name = {
        **(names or {}),
        **{name: name for name in METRIC_NAMES},
        **ALIASES,
        **(names or {}),
    }  # in order of preference
    refusals, unknown_metrics, times_without_offset, row_count = RowRefusals(), Counter[str](), 0, 0
    retained_ticks = int(store.hours * 3600 // store.step)
    parts: list[FleetRows] = []
    with _record_lines(path) as lines:
        while batch := [from_json(line, allow_inf_nan=True) for line in islice(lines, BATCH_ROWS)]:
            times_without_offset += sum(
                isinstance(record.get("time"), str) and _NO_OFFSET_PATTERN.search(record["time"]) is not None
                for record in batch
            )
            translated = [_translate_record(record, metric_by_name, unknown_metrics) for record in batch]
            parsed = check_records(translated, step=store.step, units=dict(units or {}), first_position=row_count)
            row_count += len(batch)
            refusals.merge(parsed.refusals)
            parts.append(
                filter_by_time(
                    parsed.rows, refusals, now=now, step=store.step, retained_ticks=retained_ticks, max_skew=max_skew
                )
            )
            if row_count > MAX_ROWS:
                raise NeedsHuman(f"{path} has more than {MAX_ROWS} rows. Import a smaller part of it.")
    rows = _deduplicate(FleetRows.concatenate(parts))
    new_rows = rows.filter(~_already_stored(store, rows))
    if not len(rows):
        cause = f": {refusals.first[0].reason}" if refusals.first else ""
        raise NeedsHuman(f"None of the {row_count} rows in {path} can be used{cause}.")
    if not dry_run:
        _store_rows(store, new_rows, now)
    usable = row_count - refusals.total
    times = new_rows.times.tolist()
    return ImportReport(
        row_count, len(new_rows), usable - len(new_rows), refusals, tuple(sorted(set(new_rows.servers))),
        min(times, default=None), max(times, default=None), unknown_metrics, times_without_offset,
    )  # fmt: skip


@contextlib.contextmanager
def _record_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines that the child prints; the child ends with the block."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "forecastd.fleet.history.pickle_reader", str(path.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        cwd="/",
    )
    timer = threading.Timer(READ_TIMEOUT_SECONDS, child.kill)
    timer.start()
    with child:
        out, err = cast("IO[bytes]", child.stdout), cast("IO[bytes]", child.stderr)
        try:
            yield iter(lambda: out.readline(MAX_LINE_BYTES), b"")
            problem = err.read(4_000).decode(errors="replace").strip()
            child.wait()
        finally:
            timer.cancel()
            child.kill()
    if child.returncode < 0:
        problem = f"the process that read it was killed (signal {-child.returncode}); it may be a pickle bomb"
    if child.returncode:
        raise NeedsHuman(f"Refused {path}: {problem}.")


def _translate_record(
    record: dict[str, Any], names: Mapping[str, str], unknown_metrics: Counter[str]
) -> dict[str, Any]:
    """A record under the contract's names."""
    raw_metrics: dict[str, Any] = record.get("metrics", {})
    metrics: dict[str, Any] = {}
    for name, metric in names.items():
        if raw_metrics.get(name) is not None and metric not in metrics:
            metrics[metric] = raw_metrics[name]
    for name, value in raw_metrics.items():
        if name in IDLE_NAMES and "cpu_percent" not in metrics and _is_number(value):
            metrics["cpu_percent"] = 100.0 - value
        elif (
            name not in names
            and _is_number(value)
            and (name in unknown_metrics or len(unknown_metrics) < MAX_UNKNOWN_NAMES)
        ):
            unknown_metrics[name] += 1
    profile = re.sub(r"[^a-z0-9_-]+", "_", str(record.get("profile") or "").lower())
    status = str(record.get("status") or "").lower()
    return {
        "server": record.get("server"),
        "time": record.get("time"),
        "profile": profile if PROFILE_PATTERN.fullmatch(profile) else None,
        "status": status if status in STATUSES else STATUS_ALIASES.get(status),
        "metrics": metrics,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _deduplicate(rows: FleetRows) -> FleetRows:
    """For each server and tick the newest row, sorted by tick."""
    order = np.lexsort((rows.times, _server_codes(rows), rows.ticks))
    rows = rows.select(order)
    codes = _server_codes(rows)
    last = np.append((np.diff(rows.ticks) != 0) | (np.diff(codes) != 0), True)[: len(rows)]
    return rows.filter(last)


def _server_codes(rows: FleetRows) -> NDArray[np.int64]:
    code_by_server: dict[str, int] = {}
    return np.array([code_by_server.setdefault(server, len(code_by_server)) for server in rows.servers], dtype=np.int64)


def _already_stored(store: TickStore, rows: FleetRows) -> NDArray[np.bool_]:
    """Which of these rows' servers and ticks the store has."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    stored: set[tuple[str, int]] = set()
    for chunk in store.history(
        float(rows.times.min()) - store.step, float(rows.times.max()) + store.step, metrics=METRIC_NAMES[:1]
    ):
        stored.update(zip(chunk.servers, np.floor(chunk.times / store.step).astype(np.int64).tolist(), strict=True))
    return np.array([key in stored for key in zip(rows.servers, rows.ticks.tolist(), strict=True)], dtype=np.bool_)


def _store_rows(store: TickStore, rows: FleetRows, now: float) -> None:
    ticks = np.unique(rows.ticks)
    for start in range(0, len(ticks), TICKS_PER_WRITE):
        in_group = (rows.ticks >= ticks[start]) & (rows.ticks <= ticks[min(start + TICKS_PER_WRITE, len(ticks)) - 1])
        if not store.append(rows.filter(in_group), now):
            raise RetryLater(f"Cannot write {store.path}: {store.last_error}. Rows imported so far are kept.")
