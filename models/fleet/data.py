"""What a fleet's training learns from: the metrics of some servers on the time grid, and which windows of them may be used.

A window at *origin* `o` has its encoder in the ticks `.. o` and its decoder in `o + 1 .. o + H`. The ticks are cut into
train | validation | test, with `H` unused ones between them, and a window lies wholly inside one part, whichever server it
is of: no tick that is scored was ever learnt from. Gaps are treated as where the model is run: a value is carried on for
up to `max_gap` ticks, and a longer gap in any metric ends the history before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.fleet.base import Floats, Indices
from models.fleet.manifest import Metric
from models.kinds import FLEET

MOST_MISSING = 0.5  # of a window's encoder or decoder that was not observed; one with more is not drawn


@dataclass(frozen=True, eq=False)
class FleetData:
    """`S` servers, `T` ticks on the grid, `M` metrics.

    first:   tick of the first column: its time is `first * step`, in unix seconds
    values:  float32 `[S, T, M]`, in the metrics' units, NaN where nothing was observed
    max_gap: for how many ticks a value is carried on where the model is run
    data_sha256: of the values and what they are; source, synthetic: where they came from
    request: what was asked for, as text; an interrupted training is continued for the same request only
    """

    KIND: ClassVar[str] = FLEET
    ARRAYS: ClassVar[tuple[str, ...]] = ("values",)

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    metrics: tuple[Metric, ...]
    first: int
    step: int
    values: Floats
    max_gap: int
    data_sha256: str
    source: str
    synthetic: bool
    request: str = ""

    @property
    def ticks(self) -> int:
        """How many there are."""
        return int(self.values.shape[1])

    def described(self) -> dict[str, object]:
        """The fields that are no arrays, for JSON."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in self.ARRAYS}
        return {**told, "metrics": [vars(metric) for metric in self.metrics]}

    @classmethod
    def restored(cls, described: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """What was described, with its arrays. Raises ValueError, KeyError or TypeError."""
        names = {name: tuple(described[name]) for name in ("servers", "profiles")}
        metrics = tuple(Metric(**metric) for metric in described["metrics"])
        return cls(**{**described, **names, "metrics": metrics, "values": arrays["values"]})


@dataclass(frozen=True, eq=False)
class FleetPart:
    """Ticks `start .. stop - 1`, counted from the first, and the windows wholly inside them.

    windows: int64 `[N]`, `server * T + origin`; runs: int64 `[N]`, how many steps of each encoder can be used
    """

    name: str
    start: int
    stop: int
    windows: Indices
    runs: Indices

    def spread(self, count: int, length: int, ticks: int) -> tuple[Indices, Indices]:
        """Servers and origins of about `count` windows with encoders of `length`, of all servers at evenly spread origins.

        With shorter encoders where the part has no full one.
        """
        full = self.windows[self.runs >= min(length, int(self.runs.max()))]
        servers, origins = full // ticks, full % ticks
        at_once = max(1, len(np.unique(servers)))
        known = np.unique(origins)
        chosen = known[np.linspace(0, len(known) - 1, max(1, count // at_once)).round().astype(np.int64)]
        taken = np.flatnonzero(np.isin(origins, chosen))
        order = taken[np.lexsort((servers[taken], origins[taken]))]
        return servers[order], origins[order]


@dataclass(frozen=True, eq=False)
class FleetSplit:
    """The three parts, in time order."""

    train: FleetPart
    validation: FleetPart
    test: FleetPart


def carried(values: Floats, most: int) -> Floats:
    """A copy of `[S, T, M]` with every value carried on over up to `most` missing ones."""
    filled = values.copy()
    for server in np.flatnonzero(np.isnan(values).any(axis=(1, 2))):
        part = filled[server]
        ticks = np.arange(len(part))[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(part), -1, ticks), axis=0)
        near = (last >= 0) & (ticks - last <= most)
        filled[server] = np.where(near, np.take_along_axis(part, np.maximum(last, 0), axis=0), np.nan)
    return filled


@dataclass(frozen=True)
class Cut:
    """How windows are cut: the least and the most steps of their encoders, the horizon, and the shares of the later parts."""

    least: int
    most: int
    horizon: int
    validation: float
    test: float


def split(data: FleetData, filled: Floats, cut: Cut) -> FleetSplit:
    """Cut the ticks into parts; `filled` as `carried` gives it.

    Raises:
        DataError: too little history, or gaps leave a part without a window.
    """
    sizes, horizon = _sizes(data, cut), cut.horizon
    seen = np.zeros((len(data.servers), data.ticks + 1))
    np.cumsum(np.isfinite(data.values).mean(axis=2), axis=1, out=seen[:, 1:])
    trained = sizes[0]
    validated = trained + horizon + sizes[1]
    bounds = (
        ("train", 0, trained),
        ("validation", trained + horizon, validated),
        ("test", validated + horizon, data.ticks),
    )
    grid = _Grid(np.asarray(np.isfinite(filled).all(axis=2)), seen)
    parts = [_part(name, start, stop, grid, cut) for name, start, stop in bounds]
    for part in parts:
        if not len(part.windows):
            raise DataError(
                f"No server has {cut.least + horizon} steps without a long gap in every metric in the {part.name} part of "
                f"{_span(data.step * (part.stop - part.start))}. A model forecasts servers that report all of its metrics: "
                f"{_lacking(data)}. Take a longer history, or one with fewer gaps."
            )
    return FleetSplit(*parts)


def _sizes(data: FleetData, cut: Cut) -> list[int]:
    shares = (1 - cut.validation - cut.test, cut.validation, cut.test)
    window, between = cut.most + cut.horizon, 2 * cut.horizon
    sizes = [int((data.ticks - between) * share) for share in shares]
    if min(sizes) < window:
        needed = int(np.ceil(window / min(shares))) + between + 1
        raise DataError(
            f"The history spans {_span(data.ticks * data.step)}, and it takes at least {_span(needed * data.step)}: each of "
            f"three parts must hold a window of {window} steps of {data.step} s, with a gap between. Wait for more history, "
            "or train with a shorter encoder (--encoder-length) or horizon (--horizon)."
        )
    return sizes


@dataclass(frozen=True, eq=False)
class _Grid:
    """`usable` `[S, T]`: whether every metric is there, or carried on; `seen` `[S, T + 1]`: ticks observed before each."""

    usable: NDArray[np.bool_]
    seen: NDArray[np.float64]


def _part(name: str, start: int, stop: int, grid: _Grid, cut: Cut) -> FleetPart:
    """The windows of all servers inside these ticks."""
    ticks, seen, horizon = np.arange(stop - start), grid.seen, cut.horizon
    broken = np.maximum.accumulate(np.where(grid.usable[:, start:stop], -1, ticks), axis=1)
    runs = np.minimum(ticks - broken, cut.most)[:, : max(0, stop - start - horizon)]
    origins = np.arange(start, start + runs.shape[1])
    after = seen[:, origins + 1]
    before = np.take_along_axis(seen, origins + 1 - runs, axis=1)
    good = runs >= cut.least
    good &= after - before >= (1 - MOST_MISSING) * runs
    good &= seen[:, origins + 1 + horizon] - after >= (1 - MOST_MISSING) * horizon
    server, at = np.nonzero(good)
    windows = server * grid.usable.shape[1] + start + at
    return FleetPart(name, start, stop, windows, runs[server, at].astype(np.int64))


def _lacking(data: FleetData) -> str:
    """Which metrics come least, for a person."""
    share = np.isfinite(data.values).mean(axis=(0, 1))
    worst = np.argsort(share)[:3]
    return ", ".join(f"{data.metrics[one].name} came at {share[one]:.0%} of the ticks" for one in worst)


def _span(seconds: float) -> str:
    """A length of time for a person."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
