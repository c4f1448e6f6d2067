"""The fleet that does not exist: the same at any tick however it is asked, within bounds, and with something to foresee."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX, METRICS, PROFILE_PATTERN, SERVER_PATTERN, STATUSES
from forecastd.fleet.simulator import SCENARIOS, Simulator

MONDAY = 1_763_942_400 // 5  # 2025-11-24T00:00:00Z
HIGHS = np.array([metric.high for metric in METRICS])
LOWS = np.array([metric.low for metric in METRICS])


def column(block: Any, name: str) -> Any:
    return block[:, :, METRIC_INDEX[name]]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**64 - 1), servers=st.integers(1, 30), scenario=st.sampled_from(SCENARIOS),
    step=st.sampled_from([1, 5, 60]), first=st.integers(0, 10**9),
)  # fmt: skip
def test_tick_is_same_alone_in_block_and_other_process(
    seed: int, servers: int, scenario: Any, step: int, first: int
) -> None:
    start, at = first + 20, first % 40
    block = Simulator(seed, servers, scenario, step, start=start).block(first, 40)
    rows = Simulator(seed, servers, scenario, step, start=start).rows(first + at)
    np.testing.assert_allclose(rows.values, block[:, at], rtol=1e-5, atol=1e-6)
    assert rows.ticks.tolist() == [first + at] * servers
    assert rows.times.tolist() == [(first + at) * step] * servers


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    servers=st.integers(1, 60),
    scenario=st.sampled_from(SCENARIOS),
    first=st.integers(0, 10**9),
)
def test_values_are_within_contract_bounds(seed: int, servers: int, scenario: Any, first: int) -> None:
    simulator = Simulator(seed, servers, scenario, start=first)
    block = simulator.block(first, 50)
    assert block.shape == (servers, 50, METRIC_COUNT)
    assert block.dtype == np.float32
    assert np.all((block >= LOWS) & (block <= HIGHS))  # false for NaN too
    assert len(set(simulator.names)) == servers
    assert all(SERVER_PATTERN.fullmatch(name) for name in simulator.names)
    rows = simulator.rows(first)
    assert all(PROFILE_PATTERN.fullmatch(name) for name in rows.profiles)
    assert set(rows.statuses) <= set(STATUSES)


def test_server_is_independent_of_fleet_size() -> None:
    few, many = Simulator(7, 3), Simulator(7, 40)
    assert many.names[:3] == few.names
    np.testing.assert_array_equal(many.block(MONDAY, 30)[:3], few.block(MONDAY, 30))


def test_seed_changes_fleet() -> None:
    first, second = (Simulator(seed, 5).block(MONDAY, 200) for seed in (1, 2))
    assert np.median(np.abs(first - second) / (np.abs(first) + 1e-6)) > 0.02


def test_long_block_equals_its_parts() -> None:
    simulator = Simulator(3, 50, "varied")
    whole = simulator.block(MONDAY, 9_000)  # more than is worked on at a time
    np.testing.assert_allclose(whole[:, 5_000:5_100], simulator.block(MONDAY + 5_000, 100), rtol=1e-5, atol=1e-6)


def test_profile_shares_are_respected() -> None:
    assert Simulator(0, 20).profiles.count("web") == 8
    chosen = Simulator(0, 9, profiles={"cache": 2, "batch": 1}).profiles
    assert (chosen.count("cache"), chosen.count("batch")) == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"scenario": "calm"}, "no scenario 'calm'"),
        ({"servers": 0}, "at least one server"),
        ({"step": 0}, "at least one second"),
        ({"profiles": {"mainframe": 1}}, "no profile 'mainframe'"),
        ({"profiles": {"web": 0}}, "shares"),
        ({"profiles": {"web": -1, "cache": 2}}, "shares"),
    ],
)
def test_invalid_simulation_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NeedsHuman, match=message):
        Simulator(**({"seed": 0, "servers": 3} | arguments))


@pytest.fixture(scope="module")
def week() -> Any:
    """A healthy week of 20 servers, a tick a minute, and the simulator."""
    simulator = Simulator(5, 20, step=60)
    return simulator, simulator.block(MONDAY * 5 // 60, 7 * 1_440)


def test_load_follows_day_and_week(week: Any) -> None:
    simulator, block = week
    web = [i for i, profile in enumerate(simulator.profiles) if profile == "web"]
    rate = column(block, "requests_per_s")[web].reshape(len(web), 7, 24, 60).mean(axis=3)
    working = rate[:, :5].mean(axis=1)
    assert np.all((working.argmax(axis=1) >= 18) & (working.argmax(axis=1) <= 22))
    assert np.all(working.max(axis=1) > 1.5 * working.min(axis=1))
    assert np.mean(rate[:, 5:]) < 0.95 * np.mean(rate[:, :5])


def test_requests_raise_cpu_network_and_latency(week: Any) -> None:
    simulator, block = week
    for server in range(len(simulator.names)):
        if simulator.profiles[server] == "batch":  # whose jobs run by the clock
            continue
        rate = block[server, :, METRIC_INDEX["requests_per_s"]]
        for name in ("cpu_percent", "load_per_core", "network_in_mb_s", "latency_ms"):
            assert np.corrcoef(rate, block[server, :, METRIC_INDEX[name]])[0, 1] > 0.5, (simulator.names[server], name)


def test_latency_grows_faster_under_load(week: Any) -> None:
    _, block = week
    cpu, latency = block[0, :, METRIC_INDEX["cpu_percent"]], block[0, :, METRIC_INDEX["latency_ms"]]
    low, middle, high = (latency[np.abs(cpu - np.quantile(cpu, q)) < 2].mean() for q in (0.1, 0.5, 0.9))
    width = np.quantile(cpu, [0.1, 0.5, 0.9])
    assert (high - middle) / (width[2] - width[1]) > (middle - low) / (width[1] - width[0])


def test_jobs_run_on_schedule() -> None:
    simulator = Simulator(0, 20)
    batch = [i for i, profile in enumerate(simulator.profiles) if profile == "batch"]
    cpu = column(simulator.block(MONDAY + 10 * 720, 4 * 720), "cpu_percent")[batch].reshape(len(batch), 4 * 4, 180)
    inside, outside = cpu[:, :, 12:30].mean(), cpu[:, :, 80:170].mean()  # a quarter of an hour from its start
    assert inside > outside + 15


def test_next_minutes_are_more_predictable_than_last_value() -> None:
    """Each server sways and collects its garbage in minutes: one period ago says more than just now."""
    simulator = Simulator(0, 20)
    block = simulator.block(MONDAY, 4_000).astype(np.float64)
    gains = []
    for server, period in enumerate(np.rint(simulator._traits.gc_period[:, 0] / simulator.step).astype(int)):
        memory = block[server, :, METRIC_INDEX["memory_percent"]]
        ahead = period // 2
        late = np.abs(memory[period:] - memory[:-period]).mean()
        gains.append(late / np.abs(memory[ahead:] - memory[:-ahead]).mean())
    assert np.mean(gains) < 0.8


def test_noise_grows_with_load(week: Any) -> None:
    simulator, block = week
    web = simulator.profiles.index("web")
    rate, latency = block[web, :, METRIC_INDEX["requests_per_s"]], block[web, :, METRIC_INDEX["latency_ms"]]
    jumps, busy = np.abs(np.diff(latency)), rate[1:] > np.median(rate)
    assert jumps[busy].mean() > 1.3 * jumps[~busy].mean()


# What a fleet's own thresholds take for a warning, roughly: what must be below it in health and above it in trouble.
WARNING = {"cpu_percent": 80, "memory_percent": 85, "swap_percent": 25, "disk_percent": 85, "disk_busy_percent": 85,
           "cpu_iowait_percent": 20, "network_errors_per_s": 5, "error_percent": 2}  # fmt: skip
OVER = np.array([WARNING.get(metric.name, np.inf) for metric in METRICS])


def over(block: Any) -> Any:
    """[S]: whether the server is above a warning in most of these ticks."""
    return ((block > OVER).mean(axis=1) > 0.5).any(axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_healthy_scenario_crosses_no_threshold(seed: int) -> None:
    block = Simulator(seed, 20).block(MONDAY, 17_280)
    assert (block > OVER).any(axis=2).mean() < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_degrading_scenario_crosses_within_an_hour(seed: int) -> None:
    start = MONDAY + 7_000
    simulator, healthy = Simulator(seed, 20, "degrading", start=start), Simulator(seed, 20)
    np.testing.assert_array_equal(simulator.block(start - 300, 200), healthy.block(start - 300, 200))
    assert not over(simulator.block(start - 12, 24)).any()
    assert over(simulator.block(start + 300, 60)).sum() >= 3
    memory = column(simulator.block(start, 360), "memory_percent")
    leaking = memory[:, 300:].mean(axis=1) - memory[:, :60].mean(axis=1) > 10
    assert leaking.any()
    thirds = [memory[leaking, at : at + 60].mean() for at in (0, 120, 240)]
    assert thirds == sorted(thirds)  # it climbs, it does not jump


@pytest.mark.parametrize("seed", range(5))
def test_critical_scenario_crosses_at_start(seed: int) -> None:
    for servers in (5, 20, 60):
        simulator = Simulator(seed, servers, "critical", start=MONDAY)
        assert over(simulator.block(MONDAY, 20)).sum() >= min(4, servers)
        assert "degraded" in simulator.rows(MONDAY + 5).statuses


@pytest.mark.parametrize("seed", range(5))
def test_cascade_scenario_starts_at_database(seed: int) -> None:
    sick, well = Simulator(seed, 20, "cascade", start=MONDAY).block(MONDAY, 720), Simulator(seed, 20).block(MONDAY, 720)
    names = Simulator(seed, 20).profiles
    changed = np.abs(sick - well).max(axis=2) > 1e-6
    begins = {server: int(changed[server].argmax()) for server in range(20) if changed[server].any()}
    first = min(begins, key=lambda server: begins[server])
    assert names[first] == "database"
    assert column(sick, "disk_latency_ms")[first, 400] > 5 * column(well, "disk_latency_ms")[first, 400]
    slower = column(sick, "latency_ms")[:, 350:450].mean(axis=1) / column(well, "latency_ms")[:, 350:450].mean(axis=1)
    followers = [server for server in begins if slower[server] > 3 and server != first]
    assert followers
    assert {names[server] for server in followers} <= {"web", "worker"}
    assert all(begins[server] > begins[first] for server in followers)
    errors = column(sick, "error_percent")[followers, 350:450].mean()
    assert errors > 10 * column(well, "error_percent")[followers, 350:450].mean()
    busier = [
        i
        for i in begins
        if column(sick, "requests_per_s")[i, 350:450].sum() > 1.2 * column(well, "requests_per_s")[i, 350:450].sum()
    ]
    assert busier  # others take over
    assert not set(busier) & {first, *followers}


def test_varied_scenario_has_every_fault() -> None:
    block = Simulator(0, 40, "varied").block(MONDAY, 17_280)
    for name, level in WARNING.items():
        share = (column(block, name) > level).mean()
        assert 0.0005 < share < 0.2, name
    assert 0.005 < (block > OVER).any(axis=2).mean() < 0.5


def test_single_server_supports_every_scenario() -> None:
    for scenario in SCENARIOS:
        assert np.isfinite(Simulator(0, 1, scenario, start=MONDAY).block(MONDAY, 10)).all()
