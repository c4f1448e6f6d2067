"""Builds the training data of a fleet model from a fleet's history or a simulation, on the grid of ticks.

Every source is bounded: a maximum number of servers, those with the most data, because training holds everything in
memory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman
from forecastd.fleet import contract
from forecastd.fleet.simulator import SCENARIOS, Simulator
from forecastd.fleet.window.readiness import MAX_GAP
from forecastd.fleet.window.store import TickStore
from models.fleet.dataset import FleetData
from models.fleet.manifest import ModelMetric

CONTRACT_METRICS = tuple(ModelMetric(m.name, m.unit, m.low, m.high, m.transform) for m in contract.METRICS)
_SIMULATE_PATTERN = re.compile(r"(\d{1,5})x(\d{1,6}(?:\.\d+)?)(?::([a-z]+))?")
_MAX_VALUES = 600_000_000  # 2.4 GB; a training run needs several times that


def data_from_store(path: Path, *, hours: float, now: float, step: int, max_servers: int) -> FleetData:
    """The last `hours` of the history that a fleet stores at `path`, for the `max_servers` servers with the most
    rows.

    Metrics that no server reported are left out.

    Raises:
        NeedsHuman: there is no such history, or it is empty.
    """
    if not path.is_file():
        raise NeedsHuman(
            f"There is no fleet history at {path}. Set --state-dir to that of the `forecastd fleet serve` that collects "
            "it, or train on simulated servers (--simulate) or a table (--data)."
        )
    first, last = int((now - hours * 3600) // step), int(now // step)
    with TickStore(path, step=step, read_only=True) as store:
        rows, profiles = Counter[str](), dict[str, str]()
        newest, oldest = first, last
        for chunk in store.history(first * step, last * step):
            rows.update(chunk.servers)
            profiles.update(zip(chunk.servers, chunk.profiles, strict=True))
            ticks = (chunk.times // step).astype(np.int64)
            oldest, newest = min(oldest, int(ticks.min())), max(newest, int(ticks.max()))
        if not rows:
            raise NeedsHuman(
                f"{path} has no rows of the last {hours:g} h. Use a longer --history, or wait until the fleet has "
                "collected some."
            )
        servers = tuple(sorted(name for name, _ in rows.most_common(max_servers)))
        values = allocate_values(len(servers), newest - oldest + 1)
        row_of = {name: row for row, name in enumerate(servers)}
        for chunk in store.history(oldest * step, (newest + 1) * step, servers):
            chunk_rows = np.array([row_of[name] for name in chunk.servers], dtype=np.int64)
            values[chunk_rows, (chunk.times // step).astype(np.int64) - oldest] = chunk.values
    reported = np.asarray(np.isfinite(values).any(axis=(0, 1)))
    return make_data(
        servers=servers,
        profiles=tuple(profiles[name] for name in servers),
        metrics=tuple(metric for metric, is_reported in zip(CONTRACT_METRICS, reported, strict=True) if is_reported),
        first=oldest,
        step=step,
        values=values if reported.all() else np.ascontiguousarray(values[:, :, reported]),
        source=f"the history of a fleet, {len(servers)} of {len(rows)} servers",
    )


def simulate_data(specification: str, *, until: float, step: int, seed: int) -> FleetData:
    """A simulated history as `SERVERSxHOURS[:SCENARIO]` describes it, which ends at `until`.

    Raises:
        NeedsHuman: the specification is malformed, or too large.
    """
    match = _SIMULATE_PATTERN.fullmatch(specification.strip())
    if not match or (match[3] or "varied") not in SCENARIOS:
        raise NeedsHuman(
            f"--simulate {specification!r} is not SERVERSxHOURS[:SCENARIO], such as 20x24 or 40x168:varied; "
            f"the scenarios are {', '.join(SCENARIOS)}."
        )
    servers, ticks = int(match[1]), int(float(match[2]) * 3600 / step)
    scenario = next(name for name in SCENARIOS if name == (match[3] or "varied"))
    _check_size(servers, ticks)
    first = int(until // step) - ticks
    simulator = Simulator(seed, servers, scenario, step, start=first)
    return make_data(
        servers=simulator.names,
        profiles=simulator.profiles,
        metrics=CONTRACT_METRICS,
        first=first,
        step=step,
        values=simulator.block(first, ticks),
        source=f"simulated, {scenario}, {servers} servers, seed {seed}",
        synthetic=True,
    )


def describe_data(data: FleetData) -> str:
    """A sentence for the user."""
    synthetic_note = ", synthetic" if data.synthetic else ""
    start, end = (to_iso(tick * data.step) for tick in (data.first, data.first + data.ticks))
    summary = f"{data.source}{synthetic_note}: {data.ticks} ticks of {data.step} s, {start} to {end}"
    missing = (
        [metric.name for metric in CONTRACT_METRICS if metric not in data.metrics]
        if set(data.metrics) <= set(CONTRACT_METRICS)
        else []
    )
    return f"{summary}; without {', '.join(missing)}, which no server reported" if missing else summary


def make_data(*, synthetic: bool = False, **fields: Any) -> FleetData:
    """The data with these fields, with the gaps of the service and the hash of its content."""
    data = FleetData(**fields, max_gap=MAX_GAP, data_sha256="", synthetic=synthetic)
    description = {**data.to_metadata(), "data_sha256": "", "source": "", "request": ""}
    digest = hashlib.sha256(repr(sorted(description.items())).encode())
    digest.update(np.ascontiguousarray(data.values, dtype="<f4").data)
    return replace(data, data_sha256=digest.hexdigest())


def allocate_values(servers: int, ticks: int, metrics: int = contract.METRIC_COUNT) -> NDArray[np.float32]:
    """An array [servers, ticks, metrics] of NaN. Raises NeedsHuman if it would not fit into memory."""
    _check_size(servers, ticks, metrics)
    return np.full((servers, ticks, metrics), np.nan, dtype=np.float32)


def _check_size(servers: int, ticks: int, metrics: int = contract.METRIC_COUNT) -> None:
    """Raise NeedsHuman if the data would not fit into memory."""
    if servers < 1 or ticks < 1 or servers * ticks * metrics > _MAX_VALUES:
        max_rows = _MAX_VALUES // max(1, metrics)
        raise NeedsHuman(
            f"{servers} servers at {ticks} ticks are {servers * ticks} rows; a training run needs 1 to {max_rows}. "
            "Use fewer servers, or fewer hours."
        )


def safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """Server names with the characters that a bundle allows.

    Raises:
        NeedsHuman: two names become equal.
    """
    cleaned = tuple(re.sub(r"[^A-Za-z0-9._:-]", "-", name)[:128] for name in names)
    cleaned = tuple(name if name[:1].isalnum() else f"s{name}"[:128] for name in cleaned)
    if len(set(cleaned)) != len(cleaned):
        raise NeedsHuman(
            "The names of two series differ only in characters that a server name cannot have. Rename one."
        )
    return cleaned
