"""A fleet's model beside the baselines, on windows that nothing was learnt from, all scored in the same way.

The model is asked as it will be: all servers at one origin, by the engine that serves. A baseline is fitted on the training
part alone, and sees of a window what came before its origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.fleet import ets
from models.fleet.base import FleetEngine, FleetInput, Floats, Indices
from models.fleet.baselines import Baseline, outcome, persistence, seasonal
from models.fleet.data import FleetData, FleetPart
from models.fleet.evaluation import Scores, score
from models.fleet.groups import Groups, transform

FITTED = 4096  # windows of the training part that a baseline's errors are taken from
Tell = Callable[[float], None]  # the share that is done


@dataclass(frozen=True, eq=False)
class Ground:
    """What forecasts are compared on: the data, with gaps filled, in the groups' scales.

    filled: `[S, T, M]`, in the metrics' units, missing values carried on; scaled: the same in the scales; actual: the
    scaled outcomes, NaN where nothing was observed; rows: each server's row of `groups`
    """

    data: FleetData
    filled: Floats
    groups: Groups
    rows: Indices
    scaled: Floats
    actual: Floats

    @classmethod
    def of(cls, data: FleetData, filled: Floats, groups: Groups, rows: Indices) -> Ground:
        """In the scales of these rows of the groups."""
        center, scale = groups.center[rows][:, None], groups.scale[rows][:, None]
        scaled = (transform(filled, data) - center) / scale
        actual = np.where(np.isfinite(data.values), scaled, np.nan)
        return cls(data, filled, groups, rows, scaled, actual)

    def rescaled(self, quantiles: Floats, servers: Indices) -> Floats:
        """Transformed quantiles `[N, M, Q, H]` of these servers, in the scales."""
        rows = self.rows[servers]
        found = quantiles - self.groups.center[rows][:, :, None, None]
        found /= self.groups.scale[rows][:, :, None, None]
        return np.asarray(found, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Rivals:
    """The baselines, fitted on a training part."""

    persistence: Baseline
    seasonal: Baseline

    @classmethod
    def of(cls, ground: Ground, part: FleetPart, horizon: int, levels: tuple[float, ...]) -> Rivals:
        """Fitted on windows spread over `part`."""
        ticks, step = ground.data.ticks, ground.data.step
        windows = part.spread(FITTED, 1, ticks)
        return cls(
            persistence(ground.actual, windows, horizon, levels),
            seasonal(ground.actual, windows, horizon, levels, step=step, ticks=part.stop - part.start),
        )


@dataclass(frozen=True)
class Size:
    """How much is compared: `length` of the encoders; windows for the quick ones, and those of them for AutoETS too."""

    length: int
    horizon: int
    levels: tuple[float, ...]
    windows: int
    compared: int
    seed: int


def compare(engine: FleetEngine, ground: Ground, rivals: Rivals, part: FleetPart, size: Size, *, tell: Tell) -> Scores:
    """The scores of the model and the quick baselines on windows of a part, and of all of them on some of these (`sample`).

    Of the sample `windows` is 0 and AutoETS not there when `size.compared` is 0.
    """
    data = ground.data
    servers, origins = part.spread(size.windows, size.length, data.ticks)
    model = forecast(engine, ground, servers, origins, size.length, tell=lambda done: tell(0.5 * done))
    quantiles = {
        "model": ground.rescaled(_transformed(model, data), servers),
        "persistence": rivals.persistence.forecast(ground.scaled, servers, origins),
        "seasonal": rivals.seasonal.forecast(ground.scaled, servers, origins),
    }
    actual = outcome(ground.actual, servers, origins, size.horizon)
    found = _scores(quantiles, actual, size, ground)
    told: dict[str, object] = {
        "windows": len(servers),
        "horizons": max(1, (part.stop - part.start - size.length) // size.horizon),
        "season_seconds": rivals.seasonal.season * data.step,
        **found,
    }
    if size.compared:
        chosen = np.random.default_rng(size.seed).permutation(len(servers))[: size.compared]
        some = {name: one[chosen] for name, one in quantiles.items()}
        some["ets"] = _ets(ground, servers[chosen], origins[chosen], size, lambda done: tell(0.5 + 0.5 * done))
        told["sample"] = {"windows": len(chosen), **_scores(some, actual[chosen], size, ground)}
    tell(1.0)
    return told


def forecast(
    engine: FleetEngine, ground: Ground, servers: Indices, origins: Indices, length: int, *, tell: Tell = lambda _: None
) -> Floats:
    """The model's quantiles `[N, M, Q, H]`, in the metrics' units, for windows sorted by origin with encoders of `length`."""
    data, manifest = ground.data, engine.manifest
    levels, horizon = len(manifest.levels), manifest.horizon
    found = np.empty((len(servers), len(data.metrics), levels, horizon), dtype=np.float32)
    for origin in np.unique(origins):
        rows = np.flatnonzero(origins == origin)
        values = np.zeros((len(rows), manifest.encoder_length, len(data.metrics)), dtype=np.float32)
        values[:, -length:] = ground.filled[servers[rows], origin - length + 1 : origin + 1]
        inputs = FleetInput(
            tick=data.first + int(origin),
            step=data.step,
            servers=tuple(data.servers[one] for one in servers[rows]),
            profiles=tuple(data.profiles[one] for one in servers[rows]),
            values=values,
            lengths=np.full(len(rows), length, dtype=np.int64),
        )
        found[rows] = engine.forecast(inputs)
        tell((rows[-1] + 1) / len(servers))
    return found


def _ets(ground: Ground, servers: Indices, origins: Indices, size: Size, tell: Tell) -> Floats:
    data, found = ground.data, []
    for done, (server, origin) in enumerate(zip(servers, origins, strict=True), 1):
        past = transform(ground.filled[server, origin - size.length + 1 : origin + 1], data)
        found.append(ets.auto_ets(past, size.horizon, size.levels))
        tell(done / len(servers))
    quantiles = np.stack(found)
    low, high = (transform(np.array([getattr(one, end) for one in data.metrics], dtype=np.float32), data)
                 for end in ("low", "high"))  # fmt: skip
    np.clip(quantiles, low[:, None, None], high[:, None, None], out=quantiles)
    return ground.rescaled(quantiles, servers)


def _transformed(quantiles: Floats, data: FleetData) -> Floats:
    """Quantiles `[N, M, Q, H]` in units, transformed."""
    return transform(np.moveaxis(quantiles, 1, -1), data).transpose(0, 3, 1, 2)


def _scores(quantiles: dict[str, Floats], actual: Floats, size: Size, ground: Ground) -> dict[str, Scores]:
    names = tuple(metric.name for metric in ground.data.metrics)
    return {name: score(one, actual, size.levels, names) for name, one in quantiles.items()}
