"""What a fleet's model is trained on: its own history, a simulated one, or a table, each on the grid of ticks.

Whatever the source, a history is bounded: at most so many servers, those with the most data first, because all of it has to
be in memory while it is trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import iso
from forecastd.errors import NeedsHuman
from forecastd.fleet import contract
from forecastd.fleet.readiness import MAX_GAP
from forecastd.fleet.simulator import SCENARIOS, Simulator
from forecastd.fleet.store import TickStore
from models.fleet.data import FleetData
from models.fleet.manifest import Metric

STORE = "window.sqlite"
CONTRACT = tuple(Metric(one.name, one.unit, one.low, one.high, one.transform) for one in contract.METRICS)
_SIMULATE = re.compile(r"(\d{1,5})x(\d{1,6}(?:\.\d+)?)(?::([a-z]+))?")
_MOST_VALUES = 600_000_000  # 2.4 GB of them; a training needs several times that


def from_store(path: Path, *, hours: float, now: float, step: int, most: int) -> FleetData:
    """The last `hours` of the history that a fleet keeps at `path`, of the `most` servers of which there is the most.

    Metrics that no server reported are left out.

    Raises:
        NeedsHuman: there is no such history, or nothing in it.
    """
    if not path.is_file():
        raise NeedsHuman(
            f"There is no history of a fleet at {path}. Give the --state-dir of the `forecastd fleet serve` that collects "
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
                f"Nothing of the last {hours:g} h is in {path}. Take a longer --history, or wait until the fleet has "
                "collected some."
            )
        servers = tuple(sorted(name for name, _ in rows.most_common(most)))
        values = room(len(servers), newest - oldest + 1)
        place = {name: row for row, name in enumerate(servers)}
        for chunk in store.history(oldest * step, (newest + 1) * step, servers):
            at = np.array([place[name] for name in chunk.servers], dtype=np.int64)
            values[at, (chunk.times // step).astype(np.int64) - oldest] = chunk.values
    data = FleetData(
        servers=servers,
        profiles=tuple(profiles[name] for name in servers),
        metrics=CONTRACT,
        first=oldest,
        step=step,
        values=values,
        max_gap=MAX_GAP,
        data_sha256="",
        source=f"the history of a fleet, {len(servers)} of {len(rows)} servers",
        synthetic=False,
    )
    return hashed(_reported(data))


def simulated(wish: str, *, until: float, step: int, seed: int) -> FleetData:
    """What `SERVERSxHOURS[:SCENARIO]` asks for: a simulated history that ends at `until`.

    Raises:
        NeedsHuman: the wish is none, or too large.
    """
    found = _SIMULATE.fullmatch(wish.strip())
    if not found or (found[3] or "varied") not in SCENARIOS:
        raise NeedsHuman(
            f"--simulate {wish!r} is not SERVERSxHOURS[:SCENARIO], such as 20x24 or 40x168:varied; the scenarios are "
            f"{', '.join(SCENARIOS)}."
        )
    servers, ticks = int(found[1]), int(float(found[2]) * 3600 / step)
    scenario = next(one for one in SCENARIOS if one == (found[3] or "varied"))
    _room_for(servers, ticks)
    first = int(until // step) - ticks
    simulator = Simulator(seed, servers, scenario, step, start=first)
    return hashed(
        FleetData(
            servers=simulator.names,
            profiles=simulator.profiles,
            metrics=CONTRACT,
            first=first,
            step=step,
            values=simulator.block(first, ticks),
            max_gap=MAX_GAP,
            data_sha256="",
            source=f"simulated, {scenario}, {servers} servers, seed {seed}",
            synthetic=True,
        )
    )


def described(data: FleetData) -> str:
    """A sentence for a person."""
    made_up = ", made up" if data.synthetic else ""
    start, end = (iso(at * data.step) for at in (data.first, data.first + data.ticks))
    told = f"{data.source}{made_up}: {data.ticks} ticks of {data.step} s, {start} to {end}"
    missing = [one.name for one in CONTRACT if one not in data.metrics] if set(data.metrics) <= set(CONTRACT) else []
    return f"{told}; without {', '.join(missing)}, which nobody reported" if missing else told


def hashed(data: FleetData) -> FleetData:
    """With the hash of what it is."""
    told = {**data.described(), "data_sha256": "", "source": "", "request": ""}
    digest = hashlib.sha256(repr(sorted(told.items())).encode())
    digest.update(np.ascontiguousarray(data.values, dtype="<f4").data)
    return replace(data, data_sha256=digest.hexdigest())


def _reported(data: FleetData) -> FleetData:
    """Without the metrics that no server reported."""
    there = np.asarray(np.isfinite(data.values).any(axis=(0, 1)))
    if there.all():
        return data
    kept = tuple(metric for metric, told in zip(data.metrics, there, strict=True) if told)
    return replace(data, metrics=kept, values=np.ascontiguousarray(data.values[:, :, there]))


def room(servers: int, ticks: int, metrics: int = contract.M) -> NDArray[np.float32]:
    """Nothing yet, of so many servers, ticks and metrics. Raises NeedsHuman when it would not fit into memory."""
    _room_for(servers, ticks, metrics)
    return np.full((servers, ticks, metrics), np.nan, dtype=np.float32)


def _room_for(servers: int, ticks: int, metrics: int = contract.M) -> None:
    """Refuse what would not fit into memory."""
    if servers < 1 or ticks < 1 or servers * ticks * metrics > _MOST_VALUES:
        most = _MOST_VALUES // max(1, metrics)
        raise NeedsHuman(
            f"{servers} servers at {ticks} ticks are {servers * ticks} rows; from 1 to {most} can be trained on. "
            "Take fewer servers, or fewer hours."
        )


def safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """Servers' names with the letters that a bundle allows.

    Raises:
        NeedsHuman: two of them become one.
    """
    found = tuple(re.sub(r"[^A-Za-z0-9._:-]", "-", name)[:128] for name in names)
    found = tuple(name if name[:1].isalnum() else f"s{name}"[:128] for name in found)
    if len(set(found)) != len(found):
        raise NeedsHuman("Two series have names that differ only in characters that a server's name cannot have.")
    return found
