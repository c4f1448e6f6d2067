"""The risk of servers: the score rises with every metric, the levels follow it, and the reasons explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX, METRIC_NAMES, METRICS, STATUSES
from forecastd.fleet.documents import RISK_LEVELS, ServerRisk
from forecastd.fleet.formatting import format_number, format_value
from forecastd.fleet.risk.assessment import (
    LEVEL_MIN_SCORES,
    RiskAssessment,
    assess_risk,
    summarize,
)
from forecastd.fleet.risk.current_values import (
    MAX_CARRY_TICKS,
    SILENT_CRITICAL_TICKS,
    SILENT_WARNING_TICKS,
    CurrentValues,
    current_values,
)
from forecastd.fleet.risk.thresholds import Thresholds, load_thresholds
from forecastd.fleet.window.window import WindowBlock

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
HORIZON, TICK = 12, 1000
THRESHOLDS = load_thresholds()
PROFILES = (*(name for name in THRESHOLDS.table if name), "generic")
LOW, HIGH = (np.array([getattr(metric, end) for metric in METRICS]) for end in ("low", "high"))
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class QuantileForecast:
    tick: int
    step: int
    servers: tuple[str, ...]
    levels: tuple[float, ...]
    quantiles: np.ndarray[Any, np.dtype[np.float32]]


def observed(current: Array, profile: str = "web", status: str = "ok", silent: int = 0) -> CurrentValues:
    """Servers with these current values [S, M]."""
    count = len(current)
    names = tuple(f"server-{row}" for row in range(count))
    zeros = np.zeros(current.shape, dtype=np.int64)
    return CurrentValues(
        TICK, 5, names, (profile,) * count, (status,) * count, np.asarray(current, dtype=np.float64), zeros,
        np.full(count, silent),
    )  # fmt: skip


def forecast(middle: Array, spread: float = 0.05) -> QuantileForecast:
    """A forecast with this median, [S, M] or [S, H, M]; the other quantiles differ from it by a share."""
    if middle.ndim == 2:
        middle = np.repeat(middle[:, None], HORIZON, axis=1)
    factors = 1 + spread * np.linspace(-1, 1, len(LEVELS))
    names = tuple(f"server-{row}" for row in range(len(middle)))
    return QuantileForecast(TICK, 5, names, LEVELS, (middle[..., None] * factors).astype(np.float32))


def assess_values(
    now: Array, future: Array | None = None, limits: Thresholds = THRESHOLDS, **options: Any
) -> RiskAssessment:
    return assess_risk(observed(now, **options), None if future is None else forecast(future), limits)


def scores(assessment: RiskAssessment) -> Array:
    return np.array([risk.score for risk in assessment.risks])


def quiet(profile: str, count: int = 1, share: float = 0.3) -> Array:
    """Servers whose every metric is at a share of its warning threshold."""
    return np.repeat(THRESHOLDS.arrays([profile])[0] * share, count, axis=0)


def value_steps(metric: int, profile: str) -> Array:
    """The whole range of a metric: in even steps, and in steps of a few percent from near 0."""
    limits = THRESHOLDS.get(profile, METRIC_NAMES[metric])
    low, high = METRICS[metric].low, METRICS[metric].high
    parts = [np.linspace(low, high, 80), np.geomspace(limits.warning * 1e-4, high, 80)]
    around = [limit * np.linspace(0.9, 1.1, 11) for limit in (limits.warning, limits.critical)]
    rows: Array = np.unique(np.concatenate([*parts, *around]).astype(np.float32)).astype(np.float64)
    return rows[(rows >= low) & (rows <= high)]


@pytest.mark.parametrize("others", [0.0, 1.2], ids="others_at_{}_of_warning".format)
@pytest.mark.parametrize("metric", range(METRIC_COUNT), ids=METRIC_NAMES)
def test_score_rises_with_every_metric_over_its_range(metric: int, others: float) -> None:
    for profile in PROFILES:
        steps = value_steps(metric, profile)
        still = np.clip(quiet(profile, len(steps), others), LOW, HIGH)
        moving = still.copy()
        moving[:, metric] = steps
        for now, ahead in ((moving, still), (still, moving), (moving, moving), (moving, None)):
            risk_scores = scores(assess_values(now, ahead, profile=profile))
            assert (np.diff(risk_scores) > 0).all(), (profile, others)
            assert 0 <= risk_scores[0] < risk_scores[-1] <= 100


values = st.lists(st.floats(0, 1, width=32), min_size=METRIC_COUNT, max_size=METRIC_COUNT)


def test_score_rises_with_critical_threshold_at_maximum(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text("[default]\ncpu_percent = { warning = 50, critical = 100 }")
    limits, values = load_thresholds(path), np.linspace(0, 100, 201)
    now = quiet("generic", len(values))
    now[:, 0] = values
    assessment = assess_values(now, profile="generic", limits=limits)
    assert (np.diff(scores(assessment)) > 0).all()
    assert assessment.risks[-1].level == "critical"


steps = st.tuples(
    st.integers(0, METRIC_COUNT - 1), st.floats(0, 1), st.floats(1e-4, 1), st.sampled_from(["now", "ahead", "both"])
)
states = st.tuples(
    st.sampled_from(PROFILES),
    st.sampled_from(STATUSES),
    st.sampled_from([0, SILENT_WARNING_TICKS, SILENT_CRITICAL_TICKS]),
)


@given(values, values, steps, states)
def test_score_rises_with_any_metric_in_any_state(
    now: list[float], ahead: list[float], step: tuple[int, float, float, str], state: tuple[str, str, int]
) -> None:
    (metric, start, gap, moved_part), (profile, status, silent) = step, state
    critical = THRESHOLDS.arrays([profile])[1]
    current, coming = (np.clip(np.array([share]) * critical * 1.5, LOW, HIGH) for share in (now, ahead))
    low, high = LOW[metric], min(HIGH[metric], 3 * critical[0, metric])
    base_value = low + start * (high - low) * (1 - gap)
    pair = [base_value, base_value + gap * (high - low)]
    both = {"now": np.repeat(current, 2, axis=0), "ahead": np.repeat(coming, 2, axis=0)}
    for name in ("now", "ahead"):
        if moved_part in {name, "both"}:
            both[name][:, metric] = pair
    risk_scores = scores(assess_values(both["now"], both["ahead"], profile=profile, status=status, silent=silent))
    assert risk_scores[0] < risk_scores[1]


def single_risk(assessment: RiskAssessment) -> ServerRisk:
    return assessment.risks[0]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("metric", range(METRIC_COUNT), ids=METRIC_NAMES)
def test_single_metric_at_threshold_sets_level(metric: int, profile: str) -> None:
    limits = THRESHOLDS.get(profile, METRIC_NAMES[metric])
    low = LOW[None, :].copy()
    for limit, now, likely in ((limits.critical, "critical", "warning"), (limits.warning, "warning", "watch")):
        # The forecast is float32, which may lie just below the limit; so its value is a little above.
        high = low.copy()
        high[0, metric] = min(limit * (1 + 1e-6), HIGH[metric])
        assert single_risk(assess_values(high, profile=profile)).level == now
        assert RISK_LEVELS.index(single_risk(assess_values(low, high, profile=profile)).level) >= RISK_LEVELS.index(
            likely
        )
    possible = forecast(low)
    possible.quantiles[..., metric, 5:] = limits.critical
    risk = single_risk(assess_risk(observed(low, profile), possible, THRESHOLDS))
    assert risk.level == "watch"
    assert (risk.minutes_ahead, risk.quantile_ahead) == (5 / 60, 0.9)


def test_ordinary_load_is_ok_without_reasons() -> None:
    risk = single_risk(assess_values(quiet("web", share=0.6), quiet("web", share=0.6)))
    assert (risk.level, risk.reasons, risk.minutes_ahead) == ("ok", (), None)
    assert risk.incident_probability == pytest.approx(0, abs=0.01)


def test_level_follows_score() -> None:
    steps = value_steps(METRIC_INDEX["cpu_percent"], "web")
    now = quiet("web", len(steps))
    now[:, METRIC_INDEX["cpu_percent"]] = steps
    for risk in assess_values(now).risks:
        expected = max(
            (name for name in LEVEL_MIN_SCORES if risk.score >= LEVEL_MIN_SCORES[name]),
            key=LEVEL_MIN_SCORES.__getitem__,
            default="ok",
        )
        assert risk.level == expected


@pytest.mark.parametrize(("status", "silent", "level", "reason"), [
    ("down", 0, "critical", "reports status down"),
    ("degraded", 0, "warning", "reports status degraded"),
    ("ok", SILENT_WARNING_TICKS, "warning", "no data for 1 min (12 ticks)"),
    ("ok", SILENT_CRITICAL_TICKS, "critical", "no data for 5 min (60 ticks)"),
    ("ok", SILENT_WARNING_TICKS - 1, "ok", None),
    ("maintenance", SILENT_CRITICAL_TICKS, "ok", "in maintenance: not assessed, no alerts"),
])  # fmt: skip
def test_status_and_silence_raise_level(status: str, silent: int, level: str, reason: str | None) -> None:
    risk = single_risk(assess_values(quiet("web"), quiet("web"), status=status, silent=silent))
    assert risk.level == level
    assert risk.reasons == (() if reason is None else (reason,))
    assert (risk.incident_probability == 1.0) == (status == "down")


def test_unknown_metric_does_not_count() -> None:
    nothing = np.full((1, METRIC_COUNT), np.nan)
    risk = single_risk(assess_values(nothing))
    assert (risk.score, risk.level, risk.reasons, risk.incident_probability) == (0.0, "ok", (), None)
    busy = quiet("web", share=0.9)
    partly = busy.copy()
    partly[0, 3:] = np.nan
    assert 0 < single_risk(assess_values(partly)).score < single_risk(assess_values(busy)).score
    assert single_risk(assess_values(nothing, busy)).score > LEVEL_MIN_SCORES["watch"]
    no_forecast = forecast(busy)
    no_forecast.quantiles[:] = np.nan
    assert single_risk(assess_risk(observed(busy), no_forecast, THRESHOLDS)) == single_risk(assess_values(busy))


def rising_values(now: float, at_end: float, metric: str) -> tuple[Array, Array]:
    """A metric that moves from one value to another over the horizon; the others stay low."""
    column = METRIC_INDEX[metric]
    current = quiet("generic")
    current[0, column] = now
    ahead = np.repeat(current[:, None], HORIZON, axis=1)
    ahead[0, :, column] = np.linspace(now, at_end, HORIZON + 1)[1:]
    return current, ahead


@pytest.mark.parametrize(("metric", "now", "end", "reason"), [
    ("memory_percent", 91, 97, "memory 91 % now, likely above 95 % in 40 s (p90 100 %)"),
    ("memory_percent", 91, 92, "memory 91 % now, possibly above 95 % in 1 min (p90 95.1 %)"),
    ("memory_percent", 86, 86, "memory 86 % now, warning from 85 % (p90 88.9 %)"),
    ("memory_percent", 98, 98, "memory 98 % now, critical from 95 %"),
    ("latency_ms", 400, 600, "latency 400 ms now, likely above 500 ms in 30 s (p90 620 ms)"),
    ("latency_ms", 1200, 1600, "latency 1,200 ms now, likely above 1,500 ms in 45 s (p90 1,653 ms)"),
    ("network_errors_per_s", 4.9, 4.9, "network errors 4.9/s now, warning from 5/s (p90 5.06/s)"),
    ("load_per_core", 1.25, 1.25, "load per core 1.25 now, warning from 1.5 (p90 1.29)"),
    ("load_per_core", np.nan, 1.25, "load per core no value now, warning from 1.5 (p90 1.29)"),
])  # fmt: skip
def test_reasons_describe_metric(metric: str, now: float, end: float, reason: str) -> None:
    current, ahead = rising_values(now, end, metric)
    if np.isnan(now):
        ahead = rising_values(end, end, metric)[1]
    assert single_risk(assess_values(current, ahead, profile="generic")).reasons == (reason,)


def test_reasons_name_three_worst_metrics() -> None:
    now = quiet("generic")
    for name, value in {"cpu_percent": 96, "memory_percent": 99, "swap_percent": 30, "disk_percent": 80}.items():
        now[0, METRIC_INDEX[name]] = value
    reasons = single_risk(assess_values(now, profile="generic")).reasons
    assert [reason.split()[0] for reason in reasons] == ["memory", "CPU", "swap"]


def test_minutes_ahead_follow_first_metric_and_shrink() -> None:
    current, ahead = rising_values(60, 99, "memory_percent")
    ahead[0, 8:, METRIC_INDEX["cpu_percent"]] = 96
    assessment = assess_risk(observed(current, "generic"), forecast(ahead), THRESHOLDS)
    assert (single_risk(assessment).minutes_ahead, single_risk(assessment).quantile_ahead) == (9 * 5 / 60, 0.5)
    assert assessment.prospects.ticks_to_critical[0, METRIC_INDEX["memory_percent"]] == 11
    later = assess_risk(replace(observed(current, "generic"), tick=TICK + 6), forecast(ahead), THRESHOLDS)
    assert single_risk(later).minutes_ahead == 3 * 5 / 60
    over = assess_risk(replace(observed(current, "generic"), tick=TICK + HORIZON), forecast(ahead), THRESHOLDS)
    assert (single_risk(over).minutes_ahead, single_risk(over).incident_probability) == (None, None)
    now = single_risk(assess_values(rising_values(96, 96, "memory_percent")[0], ahead, profile="generic"))
    assert (now.minutes_ahead, now.quantile_ahead, now.incident_probability) == (0.0, None, 1.0)


def test_incident_probability_multiplies_metrics() -> None:
    ahead = forecast(quiet("generic"))
    limits = THRESHOLDS.arrays(["generic"])[1][0]
    for metric, index in ((0, 5), (3, 3)):  # critical at the p90 of one metric, at the p50 of another
        ahead.quantiles[0, :, metric] = limits[metric] + np.arange(len(LEVELS)) - index
    risk = single_risk(assess_risk(observed(quiet("generic"), "generic"), ahead, THRESHOLDS))
    assert risk.incident_probability == pytest.approx(1 - 0.9 * 0.5, abs=1e-4)


def test_forecast_is_matched_by_server_name() -> None:
    now = np.concatenate([quiet("web", share=share) for share in (0.2, 0.7, 1.1)])
    observation, ahead = (
        observed(now),
        forecast(np.concatenate([quiet("web", share=share) for share in (1.3, 0.1, 0.9)])),
    )
    order = [2, 0, 1]
    shuffled = replace(ahead, servers=tuple(ahead.servers[i] for i in order), quantiles=ahead.quantiles[order])
    assert assess_risk(observation, shuffled, THRESHOLDS).risks == assess_risk(observation, ahead, THRESHOLDS).risks


def test_risk_summary_counts_fleet() -> None:
    now = np.concatenate([quiet("web", 2, 0.2), quiet("web", share=0.9), quiet("web", share=20)])
    assessment = assess_values(np.clip(now, LOW, HIGH), quiet("web", 4))
    summary = assessment.summary
    assert summary.counts == {"ok": 2, "watch": 1, "warning": 0, "critical": 1}
    assert (summary.servers, summary.maintenance, summary.silent) == (4, 0, 0)
    assert summary.mean_score == pytest.approx(np.mean(scores(assessment)))
    assert summary.worst == {"server": "server-3", "score": assessment.risks[3].score, "level": "critical"}
    assert summary.incident_probability == 1.0
    assert summary.expected_incidents == pytest.approx(1.0, abs=0.01)
    assert [risk.server for risk in assessment.worst_first][:2] == ["server-3", "server-2"]
    assert vars(summarize(())) == {
        "servers": 0, "counts": dict.fromkeys(RISK_LEVELS, 0), "maintenance": 0, "silent": 0, "mean_score": None,
        "worst": None, "incident_probability": None, "expected_incidents": None,
    }  # fmt: skip


def test_maintenance_servers_come_last_and_count_apart() -> None:
    risks = assess_values(quiet("web", 2, 0.9)).risks
    away = replace(risks[1], status="maintenance", score=99.0, level="ok", incident_probability=1.0)
    assessment = replace(assess_values(quiet("web", 2)), risks=(away, risks[0]))
    assert [risk.status for risk in assessment.worst_first] == ["ok", "maintenance"]
    summary = assessment.summary
    assert (summary.servers, summary.maintenance, sum(summary.counts.values())) == (2, 1, 1)
    assert (summary.worst or {})["server"] == "server-0"
    assert summary.incident_probability is None


def block(*columns: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[S, L, M] with these values of the first metric and none of the others."""
    values = np.full((len(columns), len(columns[0]), METRIC_COUNT), np.nan, dtype=np.float32)
    values[:, :, 0] = columns
    return values


def test_missing_value_is_carried_for_few_ticks() -> None:
    missing = [np.nan]
    columns = [[1.0] * (6 - age) + missing * age for age in range(6)] + [missing * 6]
    names = tuple(str(row) for row in range(len(columns)))
    observation = current_values(WindowBlock(50, names, names, names, block(*columns)), 5)
    assert observation.values[:, 0].tolist()[: MAX_CARRY_TICKS + 1] == [1.0] * (MAX_CARRY_TICKS + 1)
    assert np.isnan(observation.values[MAX_CARRY_TICKS + 1 :, 0]).all()
    assert observation.age_ticks[: MAX_CARRY_TICKS + 1, 0].tolist() == list(range(MAX_CARRY_TICKS + 1))
    assert observation.silent_ticks.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.isnan(observation.values[:, 1:]).all()


@pytest.mark.parametrize(("servers", "length"), [(0, 5), (0, 0), (3, 0)])
def test_observe_accepts_empty_fleet_and_history(servers: int, length: int) -> None:
    names = tuple(str(row) for row in range(servers))
    values_ = np.zeros((servers, length, METRIC_COUNT), dtype=np.float32)
    observation = current_values(WindowBlock(50, names, names, ("ok",) * servers, values_), 5)
    assessment = assess_risk(observation, forecast(np.zeros((servers, METRIC_COUNT))), THRESHOLDS)
    assert len(assessment.risks) == servers
    assert all(risk.level == "ok" for risk in assessment.risks)


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.004, "0"), (0.042, "0.04"), (1.5, "1.5"), (9.996, "10"), (12.34, "12.3"), (99.96, "100"),
    (123.4, "123"), (12345.6, "12,346"), (1e9, "1,000,000,000"), (-3.2, "-3.2"), (100.0, "100"),
])  # fmt: skip
def test_format_number_has_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_format_value_has_its_unit() -> None:
    assert [format_value(name, 12.5) for name in ("cpu_percent", "load_per_core", "requests_per_s", "network_in_mb_s")] == [
        "12.5 %", "12.5", "12.5/s", "12.5 MB/s",
    ]  # fmt: skip
