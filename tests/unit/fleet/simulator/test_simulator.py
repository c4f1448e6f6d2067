"""The simulated fleet: reproducible at any tick, within bounds, realistic and predictable."""

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
    start, offset = first + 20, first % 40
    block = Simulator(seed, servers, scenario, step, start=start).block(first, 40)
    rows = Simulator(seed, servers, scenario, step, start=start).rows(first + offset)
    np.testing.assert_allclose(rows.values, block[:, offset], rtol=1e-5, atol=1e-6)
    assert rows.ticks.tolist() == [first + offset] * servers
    assert rows.times.tolist() == [(first + offset) * step] * servers


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
    small, large = Simulator(7, 3), Simulator(7, 40)
    assert large.names[:3] == small.names
    np.testing.assert_array_equal(large.block(MONDAY, 30)[:3], small.block(MONDAY, 30))


def test_seed_changes_fleet() -> None:
    first, second = (Simulator(seed, 5).block(MONDAY, 200) for seed in (1, 2))
    assert np.median(np.abs(first - second) / (np.abs(first) + 1e-6)) > 0.02


def test_long_block_equals_its_parts() -> None:
    simulator = Simulator(3, 50, "varied")
    block = simulator.block(MONDAY, 9_000)  # more than one batch
    np.testing.assert_allclose(block[:, 5_000:5_100], simulator.block(MONDAY + 5_000, 100), rtol=1e-5, atol=1e-6)


def test_profile_shares_are_respected() -> None:
    assert Simulator(0, 20).profiles.count("web") == 8
    assigned = Simulator(0, 60).profiles
    assert [assigned.count(name) for name in ("web", "database", "cache", "worker", "batch")] == [24, 12, 9, 9, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "calm"}, "Unknown scenario 'calm'"),
        ({"servers": 0}, "at least one server"),
        ({"step": 0}, "at least one second"),
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
        if simulator.profiles[server] == "batch":  # its jobs run on a schedule
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
    inside, outside = cpu[:, :, 12:30].mean(), cpu[:, :, 80:170].mean()  # of each quarter of an hour
    assert inside > outside + 15


def test_next_minutes_are_more_predictable_than_last_value() -> None:
    """Autoscaling and garbage collection are periodic: the value one period ago predicts better than the last one."""
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


# Approximate warning thresholds: healthy servers stay below them, faulty servers exceed them.
WARNING_BY_METRIC = {"cpu_percent": 80, "memory_percent": 85, "swap_percent": 25, "disk_percent": 85, "disk_busy_percent": 85,
           "cpu_iowait_percent": 20, "network_errors_per_s": 5, "error_percent": 2}  # fmt: skip
WARNING_LEVELS = np.array([WARNING_BY_METRIC.get(metric.name, np.inf) for metric in METRICS])


def is_above_warning(block: Any) -> Any:
    """[S] whether the server is above a warning in most of these ticks."""
    return ((block > WARNING_LEVELS).mean(axis=1) > 0.5).any(axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_healthy_scenario_crosses_no_threshold(seed: int) -> None:
    block = Simulator(seed, 20).block(MONDAY, 17_280)
    assert (block > WARNING_LEVELS).any(axis=2).mean() < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_degrading_scenario_crosses_within_an_hour(seed: int) -> None:
    start = MONDAY + 7_000
    simulator, healthy = Simulator(seed, 20, "degrading", start=start), Simulator(seed, 20)
    np.testing.assert_array_equal(simulator.block(start - 300, 200), healthy.block(start - 300, 200))
    assert not is_above_warning(simulator.block(start - 12, 24)).any()
    assert is_above_warning(simulator.block(start + 300, 60)).sum() >= 3
    memory = column(simulator.block(start, 360), "memory_percent")
    leaking = memory[:, 300:].mean(axis=1) - memory[:, :60].mean(axis=1) > 10
    assert leaking.any()
    thirds = [memory[leaking, offset : offset + 60].mean() for offset in (0, 120, 240)]
    assert thirds == sorted(thirds)  # it rises gradually


@pytest.mark.parametrize("seed", range(5))
def test_critical_scenario_crosses_at_start(seed: int) -> None:
    for servers in (5, 20, 60):
        simulator = Simulator(seed, servers, "critical", start=MONDAY)
        assert is_above_warning(simulator.block(MONDAY, 20)).sum() >= min(4, servers)
        assert "degraded" in simulator.rows(MONDAY + 5).statuses


@pytest.mark.parametrize("seed", range(5))
def test_cascade_scenario_starts_at_database(seed: int) -> None:
    faulty, healthy = (
        Simulator(seed, 20, "cascade", start=MONDAY).block(MONDAY, 720),
        Simulator(seed, 20).block(MONDAY, 720),
    )
    names = Simulator(seed, 20).profiles
    differs = np.abs(faulty - healthy).max(axis=2) > 1e-6
    first_difference = {server: int(differs[server].argmax()) for server in range(20) if differs[server].any()}
    first = min(first_difference, key=lambda server: first_difference[server])
    assert names[first] == "database"
    assert column(faulty, "disk_latency_ms")[first, 400] > 5 * column(healthy, "disk_latency_ms")[first, 400]
    slower = column(faulty, "latency_ms")[:, 350:450].mean(axis=1) / column(healthy, "latency_ms")[:, 350:450].mean(
        axis=1
    )
    followers = [server for server in first_difference if slower[server] > 3 and server != first]
    assert followers
    assert {names[server] for server in followers} <= {"web", "worker"}
    assert all(first_difference[server] > first_difference[first] for server in followers)
    errors = column(faulty, "error_percent")[followers, 350:450].mean()
    assert errors > 10 * column(healthy, "error_percent")[followers, 350:450].mean()
    busier = [
        i
        for i in first_difference
        if column(faulty, "requests_per_s")[i, 350:450].sum()
        > 1.2 * column(healthy, "requests_per_s")[i, 350:450].sum()
    ]
    assert busier  # other servers take over the load
    assert not set(busier) & {first, *followers}


def test_varied_scenario_has_every_fault() -> None:
    block = Simulator(0, 40, "varied").block(MONDAY, 17_280)
    for name, level in WARNING_BY_METRIC.items():
        share = (column(block, name) > level).mean()
        assert 0.0005 < share < 0.2, name
    assert 0.005 < (block > WARNING_LEVELS).any(axis=2).mean() < 0.5


def test_single_server_supports_every_scenario() -> None:
    for scenario in SCENARIOS:
        assert np.isfinite(Simulator(0, 1, scenario, start=MONDAY).block(MONDAY, 10)).all()
