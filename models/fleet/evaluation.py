"""Compare a fleet model with the baselines, on windows that are not in the train part.

The model is run as in service: all servers at one origin, by the engine that serves. A baseline is fitted on the
train part alone and reads nothing after the origin of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.fleet import ets
from models.fleet.base import FleetEngine, FleetInput, Floats, Indices
from models.fleet.baselines import SeasonalBaseline, fit_persistence, fit_seasonal, outcome
from models.fleet.dataset import FleetData, FleetPart
from models.fleet.metrics import Scores, score
from models.fleet.scaling import GroupScales, transform

BASELINE_WINDOWS = 4096  # windows of the train part for the errors of a baseline
ShareCallback = Callable[[float], None]  # the share of the work that is done


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """The data that forecasts are compared on, in the scales of the groups.

    filled:     `[S, T, M]` in the metrics' units, missing values carried forward
    group_rows: `[S]`, row of each server in `groups`
    scaled:     `filled` in the scales
    actual:     observed values in the scales, NaN where nothing was observed
    """

    data: FleetData
    filled: Floats
    groups: GroupScales
    group_rows: Indices
    scaled: Floats
    actual: Floats

    @classmethod
    def build(cls, data: FleetData, filled: Floats, groups: GroupScales, rows: Indices) -> EvaluationData:
        """Scale `filled` by these rows of the groups, one for each server."""
        center, scale = groups.center[rows][:, None], groups.scale[rows][:, None]
        scaled = (transform(filled, data.metrics) - center) / scale
        actual = np.where(np.isfinite(data.values), scaled, np.nan)
        return cls(data, filled, groups, rows, scaled, actual)

    def scale_quantiles(self, quantiles: Floats, servers: Indices) -> Floats:
        """Scale transformed quantiles `[N, M, Q, H]` of these servers."""
        rows = self.group_rows[servers]
        scaled = quantiles - self.groups.center[rows][:, :, None, None]
        scaled /= self.groups.scale[rows][:, :, None, None]
        return np.asarray(scaled, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class FleetBaselines:
    """The baselines, fitted on a train part."""

    persistence: SeasonalBaseline
    seasonal: SeasonalBaseline

    @classmethod
    def fit(
        cls, evaluation: EvaluationData, part: FleetPart, horizon: int, levels: tuple[float, ...]
    ) -> FleetBaselines:
        """Fit them on windows spread over `part`."""
        ticks, step = evaluation.data.ticks, evaluation.data.step
        windows = part.spread_windows(BASELINE_WINDOWS, 1, ticks)
        return cls(
            fit_persistence(evaluation.actual, windows, horizon, levels),
            fit_seasonal(evaluation.actual, windows, horizon, levels, step=step, ticks=part.stop - part.start),
        )


@dataclass(frozen=True)
class EvaluationOptions:
    """Size of a comparison: `length` of the encoders, number of `windows`, and `ets_windows` among them for AutoETS too."""

    length: int
    horizon: int
    levels: tuple[float, ...]
    windows: int
    ets_windows: int
    seed: int


def compare(
    engine: FleetEngine,
    evaluation: EvaluationData,
    baselines: FleetBaselines,
    part: FleetPart,
    options: EvaluationOptions,
    *,
    report: ShareCallback,
) -> Scores:
    """Scores of the model and the fast baselines on windows of `part`, and of all with AutoETS on some of them (`sample`).

    There is no `sample` if `options.ets_windows` is 0.
    """
    data = evaluation.data
    servers, origins = part.spread_windows(options.windows, options.length, data.ticks)
    model_quantiles = forecast_windows(
        engine, evaluation, servers, origins, options.length, report=lambda done: report(0.5 * done)
    )
    quantiles = {
        "model": evaluation.scale_quantiles(_transform_quantiles(model_quantiles, data), servers),
        "persistence": baselines.persistence.forecast(evaluation.scaled, servers, origins),
        "seasonal": baselines.seasonal.forecast(evaluation.scaled, servers, origins),
    }
    actual = outcome(evaluation.actual, servers, origins, options.horizon)
    scores = _score_all(quantiles, actual, options, evaluation)
    result: dict[str, object] = {
        "windows": len(servers),
        "horizons": max(1, (part.stop - part.start - options.length) // options.horizon),
        "season_seconds": baselines.seasonal.season * data.step,
        **scores,
    }
    if options.ets_windows:
        sample = np.random.default_rng(options.seed).permutation(len(servers))[: options.ets_windows]
        sample_quantiles = {name: array[sample] for name, array in quantiles.items()}
        sample_quantiles["ets"] = _forecast_ets(
            evaluation, servers[sample], origins[sample], options, lambda done: report(0.5 + 0.5 * done)
        )
        result["sample"] = {"windows": len(sample), **_score_all(sample_quantiles, actual[sample], options, evaluation)}
    report(1.0)
    return result


def forecast_windows(
    engine: FleetEngine,
    evaluation: EvaluationData,
    servers: Indices,
    origins: Indices,
    length: int,
    *,
    report: ShareCallback = lambda _: None,
) -> Floats:
    """The model's quantiles `[N, M, Q, H]`, in the metrics' units, for windows sorted by origin with encoders of `length`."""
    data, manifest = evaluation.data, engine.manifest
    levels, horizon = len(manifest.levels), manifest.horizon
    quantiles = np.empty((len(servers), len(data.metrics), levels, horizon), dtype=np.float32)
    for origin in np.unique(origins):
        rows = np.flatnonzero(origins == origin)
        values = np.zeros((len(rows), manifest.encoder_length, len(data.metrics)), dtype=np.float32)
        values[:, -length:] = evaluation.filled[servers[rows], origin - length + 1 : origin + 1]
        inputs = FleetInput(
            tick=data.first + int(origin),
            step=data.step,
            servers=tuple(data.servers[server] for server in servers[rows]),
            profiles=tuple(data.profiles[server] for server in servers[rows]),
            values=values,
            lengths=np.full(len(rows), length, dtype=np.int64),
        )
        quantiles[rows] = engine.forecast(inputs)
        report((rows[-1] + 1) / len(servers))
    return quantiles


def _forecast_ets(
    evaluation: EvaluationData, servers: Indices, origins: Indices, options: EvaluationOptions, report: ShareCallback
) -> Floats:
    data, forecasts = evaluation.data, []
    for done, (server, origin) in enumerate(zip(servers, origins, strict=True), 1):
        past = transform(evaluation.filled[server, origin - options.length + 1 : origin + 1], data.metrics)
        forecasts.append(ets.forecast_auto_ets(past, options.horizon, options.levels))
        report(done / len(servers))
    quantiles = np.stack(forecasts)
    low, high = (transform(np.array([getattr(metric, end) for metric in data.metrics], dtype=np.float32), data.metrics)
                 for end in ("low", "high"))  # fmt: skip
    np.clip(quantiles, low[:, None, None], high[:, None, None], out=quantiles)
    return evaluation.scale_quantiles(quantiles, servers)


def _transform_quantiles(quantiles: Floats, data: FleetData) -> Floats:
    """Transform quantiles `[N, M, Q, H]` from the metrics' units."""
    return transform(np.moveaxis(quantiles, 1, -1), data.metrics).transpose(0, 3, 1, 2)


def _score_all(
    quantiles: dict[str, Floats], actual: Floats, options: EvaluationOptions, evaluation: EvaluationData
) -> dict[str, Scores]:
    names = tuple(metric.name for metric in evaluation.data.metrics)
    return {name: score(array, actual, options.levels, names) for name, array in quantiles.items()}
