"""The risk of a server: a score from its current values and its forecast, with reasons in words.

Invariant: the score rises strictly with every metric over its whole range, both with the current value and with the
forecast; a test walks each metric up and checks it. So no term saturates, and nothing is rounded before it is shown.

The score: the pressure of a value is 0 at the metric's lowest value, `AT_WARNING` at its warning threshold,
`AT_CRITICAL` at its critical threshold and 1 at its highest value. A metric has four pressures, each multiplied by
its weight of `WEIGHTS`: that of the current value, of the mean p50 ahead (early steps count more), of the highest p50
and of the highest p90. The score is 100 * (`WORST_METRIC_SHARE` * the largest pressure of all metrics + (1 -
`WORST_METRIC_SHARE`) * the mean of all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forecastd.fleet.contract import METRICS
from forecastd.fleet.documents import RISK_LEVELS, RiskSummary, ServerRisk
from forecastd.fleet.forecast.horizon_stats import HorizonForecast, Reals, ThresholdStats, horizon_stats
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS, CurrentValues
from forecastd.fleet.risk.explanations import ReasonBuilder
from forecastd.fleet.risk.thresholds import Thresholds

LEVEL_MIN_SCORES = {"watch": 30.0, "warning": 55.0, "critical": 80.0}  # the lowest score of each level
AT_WARNING, AT_CRITICAL = 0.6, 0.85
# 0.95 * AT_CRITICAL > 0.80: one metric at its critical threshold makes the server critical; likewise 0.55 for warning.
WORST_METRIC_SHARE = 0.95
# A likely incident (p50) is a warning, a possible one (p90) a watch.
WEIGHTS = {"now": 1.0, "soon": 1.0, "p50": 0.9, "p90": 0.65}

_LOG = np.array([metric.transform == "log1p" for metric in METRICS])
_LOW, _HIGH = (np.array([getattr(metric, end) for metric in METRICS]) for end in ("low", "high"))


@dataclass(frozen=True)
class RiskAssessment:
    """All servers at one tick. Arrays are [S, M] in the contract's order; NaN: unknown, or not within the horizon."""

    observed: CurrentValues
    warning: Reals
    critical: Reals
    prospects: ThresholdStats
    risks: tuple[ServerRisk, ...]

    @cached_property
    def worst_first(self) -> tuple[ServerRisk, ...]:
        """The risks by descending score; servers in maintenance last."""
        return tuple(sorted(self.risks, key=lambda risk: (risk.status == "maintenance", -risk.score, risk.server)))

    @cached_property
    def summary(self) -> RiskSummary:
        """The risk of the whole fleet."""
        return summarize(self.risks, silent=int((self.observed.silent_ticks >= SILENT_WARNING_TICKS).sum()))


def assess_risk(observed: CurrentValues, forecast: HorizonForecast | None, thresholds: Thresholds) -> RiskAssessment:
    """The risk of every observed server, from its current values and the part of its forecast that lies ahead.

    An unknown metric does not count. A server with status down is critical, one with status degraded at least at
    warning; a server without data is at warning after `SILENT_WARNING_TICKS` ticks and critical after
    `SILENT_CRITICAL_TICKS` ticks.
    """
    warning, critical = thresholds.arrays(observed.profiles)
    outlook = None if forecast is None else horizon_stats(forecast, observed.servers, observed.tick)
    prospects = ThresholdStats.of(outlook, warning, critical)
    pressures = _pressures(observed.values, prospects, warning, critical)  # [4, S, M]
    score = _score(pressures.max(axis=0), pressures.mean(axis=0), _min_scores(observed))
    maintenance = np.array([status == "maintenance" for status in observed.statuses], dtype=np.bool_)
    level = np.where(maintenance, 0, np.digitize(score, list(LEVEL_MIN_SCORES.values())))
    probability = _incident_probability(observed, prospects.critical_probability, critical)
    reasons = ReasonBuilder(observed, prospects, warning, critical, pressures.max(axis=0))
    results = zip(score.tolist(), level.tolist(), probability.tolist(), strict=True)
    risks = tuple(_server_risk(reasons, row, *result) for row, result in enumerate(results))
    return RiskAssessment(observed, warning, critical, prospects, risks)


def pressure(values: Reals, warning: Reals, critical: Reals) -> Reals:
    """[..., M] the pressure of each value: 0 to 1, strictly rising from the metric's lowest value to its highest.

    NaN gives 0.
    Below the warning threshold it rises slowly first, then steeply, so that an ordinary load stays low. Above the
    critical threshold, metrics with the transform "log1p" use log1p, for their highest value is far away.
    """
    clipped = np.clip(np.where(np.isnan(values), _LOW, values), _LOW, _HIGH)
    below = np.clip((clipped - _LOW) / (warning - _LOW), 0, 1)
    between = np.clip((clipped - warning) / (critical - warning), 0, 1)
    value, start, end = (np.where(_LOG, np.log1p(bound), bound) for bound in (clipped, critical, _HIGH))
    span = end - start
    above = np.divide(np.maximum(value - start, 0), span, out=np.zeros(clipped.shape), where=span > 0)
    steep = 0.2 * below + 0.8 * below**3
    return np.asarray(AT_WARNING * steep + (AT_CRITICAL - AT_WARNING) * between + (1 - AT_CRITICAL) * above)


def _pressures(current: Reals, prospects: ThresholdStats, warning: Reals, critical: Reals) -> Reals:
    """[4, S, M] the weighted pressures of the current values and of the forecast."""
    values = (current, prospects.weighted_median, prospects.peak_p50, prospects.peak_p90)
    weighted = zip(values, WEIGHTS.values(), strict=True)
    return np.stack([weight * pressure(value, warning, critical) for value, weight in weighted])


def _score(worst: Reals, mean: Reals, floor: Reals) -> Reals:
    """[S] the score, from each metric's largest and mean pressure [S, M], lifted above `floor` [S]."""
    score = 100 * (WORST_METRIC_SHARE * worst.max(axis=1) + (1 - WORST_METRIC_SHARE) * mean.mean(axis=1))
    return np.asarray(floor + score * (100 - floor) / 100)


def _min_scores(observed: CurrentValues) -> Reals:
    """[S] the minimum score: a server with a bad status, or without data, is at risk whatever its metrics are."""
    silent = np.digitize(observed.silent_ticks, (SILENT_WARNING_TICKS, SILENT_CRITICAL_TICKS))
    floor = np.array([0.0, LEVEL_MIN_SCORES["warning"], LEVEL_MIN_SCORES["critical"]])[silent]
    status_scores = {"down": LEVEL_MIN_SCORES["critical"], "degraded": LEVEL_MIN_SCORES["warning"]}
    status_floor = np.array([status_scores.get(status, 0.0) for status in observed.statuses], dtype=np.float64)
    return np.asarray(np.maximum(floor, status_floor))


def _incident_probability(observed: CurrentValues, probability: Reals, critical: Reals) -> Reals:
    """[S] the probability that any metric is critical now or ahead; NaN without a forecast."""
    metrics = np.where(observed.values >= critical, 1.0, np.nan_to_num(probability))
    incident = np.asarray(1 - np.prod(1 - metrics, axis=1))
    incident[np.isnan(probability).all(axis=1)] = np.nan
    incident[[status == "down" for status in observed.statuses]] = 1.0
    return incident


def _server_risk(builder: ReasonBuilder, row: int, score: float, level: int, probability: float) -> ServerRisk:
    """The risk of one server. `level`: its index in `RISK_LEVELS`. `probability`: NaN where unknown."""
    observed = builder.observed
    needs_reasons = level > 0 or observed.statuses[row] != "ok"
    reasons = builder.reasons_for(row, LEVEL_MIN_SCORES["watch"] / (100 * WORST_METRIC_SHARE)) if needs_reasons else ()
    minutes_ahead, quantile_ahead = builder.minutes_ahead(row)
    return ServerRisk(
        server=observed.servers[row],
        profile=observed.profiles[row],
        status=observed.statuses[row],
        score=score,
        level=RISK_LEVELS[level],
        reasons=reasons,
        incident_probability=None if np.isnan(probability) else probability,
        minutes_ahead=minutes_ahead,
        quantile_ahead=quantile_ahead,
        current=builder.current_values(row),
    )


def summarize(risks: Sequence[ServerRisk], *, silent: int = 0) -> RiskSummary:
    """The risk of the fleet. `silent`: the number of servers without data for `SILENT_WARNING_TICKS` ticks or more."""
    active = [risk for risk in risks if risk.status != "maintenance"]
    probabilities = [risk.incident_probability for risk in active if risk.incident_probability is not None]
    worst = max(active, key=lambda risk: risk.score, default=None)
    return RiskSummary(
        servers=len(risks),
        counts={level: sum(risk.level == level for risk in active) for level in RISK_LEVELS},
        maintenance=len(risks) - len(active),
        silent=silent,
        mean_score=float(np.mean([risk.score for risk in active])) if active else None,
        worst=None if worst is None else {"server": worst.server, "score": worst.score, "level": worst.level},
        incident_probability=float(1 - np.prod(1 - np.array(probabilities))) if probabilities else None,
        expected_incidents=float(np.sum(probabilities)) if probabilities else None,
    )
