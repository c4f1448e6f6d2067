"""Compare a fleet model with the baselines, on windows that are not in the train part.

The model is run as in service: all servers at one origin, by the engine that serves. A baseline is fitted on the
train part alone and reads nothing after the origin of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.baselines import SeasonalBaseline, fit_persistence, fit_seasonal, forecast_auto_ets, outcome
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData, FleetPart
from models.fleet.engine import FleetEngine
from models.fleet.scaling import GroupScales, MetricTransform
from models.scores import Scores, interval_hits, pinball

BASELINE_WINDOWS = 4096  # windows of the train part for the errors of a baseline
Reals = NDArray[np.float64]
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
        scaled = (MetricTransform(data.metrics)(filled) - center) / scale
        actual = np.where(np.isfinite(data.values), scaled, np.nan)
        return cls(data, filled, groups, rows, scaled, actual)

    def scale_quantiles(self, quantiles: Floats, servers: Indices) -> Floats:
        """Scale transformed quantiles `[N, M, Q, H]` of these servers."""
        rows = self.group_rows[servers]
        scaled = quantiles - self.groups.center[rows][:, :, None, None]
        scaled /= self.groups.scale[rows][:, :, None, None]
        return np.asarray(scaled, dtype=np.float32)


def fit_baselines(
    evaluation: EvaluationData, part: FleetPart, horizon: int, levels: tuple[float, ...]
) -> dict[str, SeasonalBaseline]:
    """The baselines, by name, fitted to windows spread over a train part."""
    data, values = evaluation.data, evaluation.actual
    windows = part.spread_windows(BASELINE_WINDOWS, 1, data.ticks)
    seasonal = fit_seasonal(values, windows, horizon, levels, step=data.step, ticks=part.stop - part.start)
    return {"persistence": fit_persistence(values, windows, horizon, levels), "seasonal": seasonal}


def compare(
    engine: FleetEngine,
    evaluation: EvaluationData,
    baselines: Mapping[str, SeasonalBaseline],
    part: FleetPart,
    config: FleetTrainingConfig,
    *,
    report: ShareCallback,
) -> Scores:
    """Scores of the model and the fast baselines on windows of `part`, and of all with AutoETS on some of them (`sample`).

    Only the test part has a `sample`, of `config.compared_windows` windows; none if that is 0.
    """
    data, length = evaluation.data, min(config.encoder_length, int(part.runs.max()))
    servers, origins = part.spread_windows(config.scored_windows, length, data.ticks)
    model_quantiles = forecast_windows(
        engine, evaluation, servers, origins, length, report=lambda done: report(0.5 * done)
    )
    transformed = MetricTransform(data.metrics)(np.moveaxis(model_quantiles, 1, -1)).transpose(0, 3, 1, 2)
    quantiles = {
        "model": evaluation.scale_quantiles(transformed, servers),
        **{name: baseline.forecast(evaluation.scaled, servers, origins) for name, baseline in baselines.items()},
    }
    actual = outcome(evaluation.actual, servers, origins, config.horizon)
    names = tuple(metric.name for metric in data.metrics)
    scores = {name: score(array, actual, config.levels, names) for name, array in quantiles.items()}
    result: dict[str, object] = {
        "windows": len(servers),
        "horizons": max(1, (part.stop - part.start - length) // config.horizon),
        "season_seconds": baselines["seasonal"].season * data.step,
        **scores,
    }
    if part.name == "test" and config.compared_windows:
        sample = np.random.default_rng(config.seed).permutation(len(servers))[: config.compared_windows]
        sample_quantiles = {name: array[sample] for name, array in quantiles.items()}
        sample_quantiles["ets"] = _forecast_ets(
            evaluation,
            servers[sample],
            origins[sample],
            length,
            config=config,
            report=lambda done: report(0.5 + 0.5 * done),
        )
        result["sample"] = {
            "windows": len(sample),
            **{name: score(array, actual[sample], config.levels, names) for name, array in sample_quantiles.items()},
        }
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
    evaluation: EvaluationData,
    servers: Indices,
    origins: Indices,
    length: int,
    *,
    config: FleetTrainingConfig,
    report: ShareCallback,
) -> Floats:
    transform, forecasts = MetricTransform(evaluation.data.metrics), []
    for done, (server, origin) in enumerate(zip(servers, origins, strict=True), 1):
        past = transform(evaluation.filled[server, origin - length + 1 : origin + 1])
        forecasts.append(forecast_auto_ets(past, config.horizon, config.levels))
        report(done / len(servers))
    quantiles = np.stack(forecasts)
    low, high = transform(transform.low), transform(transform.high)
    np.clip(quantiles, low[:, None, None], high[:, None, None], out=quantiles)
    return evaluation.scale_quantiles(quantiles, servers)


def score(quantiles: Floats, actual: Floats, levels: tuple[float, ...], names: tuple[str, ...]) -> Scores:
    """All scores of one forecaster: quantiles `[N, M, Q, H]`, outcomes `[N, M, H]`, NaN where nothing was observed.

    All values are in the groups' scales, as for the network, so that metrics of different units can be averaged.

    pinball: mean over the levels and the metrics, with equal weights; pinball_first, pinball_last: of the first and the
    last step; coverage: the share of outcomes inside each central interval; by_metric: pinball and coverage of each
    """
    by_step = np.moveaxis(quantiles, 2, -1)
    losses = pinball(by_step, actual, levels).mean(axis=-1)
    loss_by_metric = mean_by_metric(losses)
    coverage_by_metric = {name: mean_by_metric(hits) for name, hits in interval_hits(by_step, actual, levels).items()}
    return {
        "pinball": _mean(loss_by_metric),
        "pinball_first": _mean(mean_by_metric(losses[..., :1])),
        "pinball_last": _mean(mean_by_metric(losses[..., -1:])),
        "coverage": {interval: _mean(share) for interval, share in coverage_by_metric.items()},
        "by_metric": {
            name: {
                "pinball": _mean(loss_by_metric[index]),
                "coverage": {interval: _mean(share[index]) for interval, share in coverage_by_metric.items()},
            }
            for index, name in enumerate(names)
        },
    }


def mean_by_metric(values: NDArray[Any]) -> Reals:
    """The mean `[M]` of `[N, M, H]` over values that are not NaN; NaN where all are."""
    observed = np.isfinite(values)
    total = np.where(observed, values, 0).sum(axis=(0, 2), dtype=np.float64)
    return np.asarray(total / np.where(observed.any(axis=(0, 2)), observed.sum(axis=(0, 2)), np.nan))


def _mean(values: Reals) -> float | None:
    """The mean of a number or of several, without those that are NaN; None if all are."""
    observed = values[np.isfinite(values)]
    return float(observed.mean()) if observed.size else None
