"""A block of the fleet's window becomes a forecast of every server, in a real child process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.fleet.contract import METRICS, NAMES
from forecastd.fleet.grid import Block
from forecastd.fleet.inference import FleetForecaster, accepted
from forecastd.supervise.policy import Policy
from models.fleet.base import FleetInput
from models.fleet.bundle import (
    CANARY_SERVERS,
    FleetBundle,
    FleetCanary,
    canary_input,
    load_fleet_bundle,
    write_fleet_bundle,
)
from models.fleet.engines import load_fleet_engine
from models.fleet.manifest import DEFAULT, OTHER, FleetManifest, Metric, fleet_reals
from models.manifest import Network
from models.records import Interval, Training
from models.shapes import expected_shapes

TICK, LENGTH, MINIMUM, HORIZON = 344_000_000, 20, 8, 12
LEVELS = (0.1, 0.5, 0.9)
PROFILES = (OTHER, "web", "database")


def bundle_of(names: tuple[str, ...], step: int = 5) -> FleetBundle:
    """A small random network for these metrics of the contract, its canary made by the numpy engine."""
    rng = np.random.default_rng(4)
    metrics = tuple(Metric(m.name, m.unit, m.low, m.high, m.transform) for m in METRICS if m.name in names)
    encoder, decoder = fleet_reals(tuple(metric.name for metric in metrics), ("day",))
    network = Network(8, 4, 2, 1, encoder, decoder, len(LEVELS), len(metrics), len(PROFILES), 2)
    parts = {name: Interval(10 * at, 10 * at + 10, 1) for at, name in enumerate(("train", "validation", "test"))}
    groups = (DEFAULT, "profile:web", "profile:database", "server:web-3")
    manifest = FleetManifest(
        name="small", metrics=metrics, cycles=("day",), profiles=PROFILES, groups=groups, step=step,
        encoder_length=LENGTH, encoder_minimum=MINIMUM, horizon=HORIZON, levels=LEVELS, network=network,
        training=Training(0, 30, 6, "0" * 64, "made up", True, 0, parts, {}), versions={}, scores={}, files={},
    )  # fmt: skip
    weights = {
        name: rng.normal(0, 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.4, shape).astype(np.float32)
        for name, shape in expected_shapes(network).items()
    }
    table, rows = (len(groups), len(metrics)), np.arange(CANARY_SERVERS)
    values = rng.uniform(2, 60, (CANARY_SERVERS, LENGTH, len(metrics))).astype(np.float32)
    nothing = np.zeros((CANARY_SERVERS, len(metrics), len(LEVELS), HORIZON), dtype=np.float32)
    canary = FleetCanary(TICK, values, rows, rows, nothing)
    center, scale = rng.uniform(2, 4, table), rng.uniform(0.5, 1, table)
    bundle = FleetBundle(Path("-"), manifest, weights, center.astype(np.float32), scale.astype(np.float32), canary)
    made = load_fleet_engine(bundle, "fused").forecast(canary_input(bundle))
    return replace(bundle, canary=replace(canary, quantiles=made))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "bundle"
    write_fleet_bundle(path, bundle_of(NAMES))
    return path


@pytest.fixture(scope="module")
def forecaster(place: Path) -> Iterator[FleetForecaster]:
    with FleetForecaster(place, policy=Policy(), clock=SystemClock(), step=5) as one:
        one.ready()
        yield one


def block_of(servers: tuple[str, ...], length: int = LENGTH, tick: int = TICK) -> Block:
    rng = np.random.default_rng(len(servers))
    values = rng.uniform(5, 60, (len(servers), length, len(NAMES))).astype(np.float32)
    profiles = tuple(server.split("-")[0] for server in servers)
    return Block(tick, servers, profiles, ("ok",) * len(servers), values)


def test_the_child_gives_what_the_engine_gives_for_every_server_by_its_name(
    forecaster: FleetForecaster, place: Path
) -> None:
    block = block_of(("web-1", "database-1", "web-3", "cache-9"))
    found = forecaster.forecast(block)
    lengths = np.full(4, LENGTH)
    inputs = FleetInput(TICK, 5, block.servers, block.profiles, block.values, lengths)
    wanted = load_fleet_engine(load_fleet_bundle(place), "fused").forecast(inputs)
    assert found.servers == block.servers
    assert found.models == ("tft",) * 4
    np.testing.assert_allclose(found.quantiles, wanted.transpose(0, 3, 1, 2), rtol=1e-3, atol=1e-3)
    assert (found.tick, found.step, found.horizon, found.bundle) == (TICK, 5, HORIZON, "small")
    assert found.bundle_sha256 == forecaster.manifest.sha256


def test_a_server_that_the_model_cannot_forecast_gets_the_heuristic_and_says_so(forecaster: FleetForecaster) -> None:
    block = block_of(("web-1", "web-2", "web-4", "web-5", "web-6"))
    block.values[1, : LENGTH - MINIMUM + 1] = np.nan  # one tick too few
    block.values[2, : LENGTH - MINIMUM] = np.nan  # just enough
    block.values[3] = np.nan  # nothing
    block.values[4, :, 3] = np.nan  # one metric never
    found = forecaster.forecast(block)
    assert found.models == ("tft", "heuristic", "tft", "heuristic", "heuristic")
    assert np.isnan(found.quantiles[3]).all()
    assert np.isfinite(found.quantiles[[0, 1, 2]]).all()
    assert np.isnan(found.quantiles[4, :, 3]).all()
    assert np.isfinite(np.delete(found.quantiles[4], 3, axis=1)).all()
    alone = forecaster.forecast(Block(TICK, block.servers[2:3], block.profiles[2:3], ("ok",), block.values[2:3]))
    np.testing.assert_allclose(found.quantiles[2], alone.quantiles[0], rtol=1e-4, atol=1e-4)


def test_the_stored_bytes_say_what_the_numbers_are_and_whose(forecaster: FleetForecaster) -> None:
    block = block_of(("web-1", "web-2"))
    block.values[1, :LENGTH] = np.nan
    block.values[1, -1] = 7.0
    found = forecaster.forecast(block)
    for row, (server, model) in enumerate((("web-1", "tft"), ("web-2", "heuristic"))):
        told = json.loads(found.encoded[row])
        metrics = told.pop("metrics")
        assert (told["server"], told["profile"], told["model"], told["bundle"]) == (server, "web", model, "small")
        assert (told["horizon_steps"], told["horizon_seconds"], told["horizon"]) == (12, 60, "1 min")
        assert told["origin"] == "2024-07-03T09:46:40Z"  # TICK * 5 s
        assert told["times"] == {"first": "2024-07-03T09:46:45Z", "last": "2024-07-03T09:47:40Z"}
        assert list(metrics) == list(NAMES)
        for column, metric in enumerate(METRICS):
            assert metrics[metric.name]["unit"] == metric.unit
            for place, level in ((0, "0.1"), (1, "0.5"), (2, "0.9")):
                np.testing.assert_allclose(
                    metrics[metric.name][level], found.quantiles[row, :, column, place], rtol=1e-3, atol=6e-4
                )
        asked = json.loads(found.encode(row, METRICS, (0.5, 0.75), ("cpu_percent",)))
        assert asked["levels"] == [0.5, 0.75]
        assert list(asked["metrics"]) == ["cpu_percent"]
        assert {**asked, "metrics": 0, "levels": 0} == {**told, "metrics": 0, "levels": 0}


def test_a_block_that_is_shorter_than_the_encoder_is_forecast_when_the_minimum_is_there(
    forecaster: FleetForecaster,
) -> None:
    assert forecaster.forecast(block_of(("web-1",), MINIMUM)).models == ("tft",)
    assert forecaster.forecast(block_of(("web-1",), MINIMUM - 1)).models == ("heuristic",)


def test_a_fleet_without_servers_has_an_empty_forecast(forecaster: FleetForecaster) -> None:
    found = forecaster.forecast(block_of(()))
    assert (found.servers, found.encoded, found.quantiles.shape) == ((), (), (0, HORIZON, 14, 3))


def test_a_model_of_some_of_the_contracts_metrics_forecasts_those(tmp_path: Path) -> None:
    names = ("cpu_percent", "latency_ms", "error_percent")
    write_fleet_bundle(tmp_path / "some", bundle_of(names))
    block = block_of(("web-1", "web-2"))
    block.values[:, :, NAMES.index("swap_percent")] = np.nan  # a metric that the model does not know may be missing
    block.values[1, :, NAMES.index("latency_ms")] = np.nan
    with FleetForecaster(tmp_path / "some", policy=Policy(), clock=SystemClock()) as one:
        prepared = one.prepare(block)
        found = one.forecast(block, prepared)
    assert found.metrics == names
    assert found.models == ("tft", "heuristic")
    assert "latency_ms" in prepared.reason(1)


def test_a_model_for_other_metrics_units_or_another_step_is_refused_with_the_reason(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(NeedsHuman, match="ticks of 5 s, the fleet runs on 10 s"):
        accepted(place, 10)
    good = bundle_of(NAMES)
    for index, (change, told) in enumerate(
        ((("cpu_percent", "share"), "cpu_percent in share"), (("temperature", "%"), "forecasts temperature"))
    ):
        metrics = (replace(good.manifest.metrics[0], name=change[0], unit=change[1]), *good.manifest.metrics[1:])
        encoder, decoder = fleet_reals(tuple(metric.name for metric in metrics), ("day",))
        network = replace(good.manifest.network, encoder_reals=encoder, decoder_reals=decoder)
        weights = {key.replace("cpu_percent", change[0]): value for key, value in good.weights.items()}
        other = replace(good, manifest=replace(good.manifest, metrics=metrics, network=network), weights=weights)
        write_fleet_bundle(tmp_path / str(index), other)
        with pytest.raises(NeedsHuman, match=told):
            accepted(tmp_path / str(index), 5)


def test_a_market_model_is_no_model_of_a_fleet(root: Path) -> None:
    with pytest.raises(NeedsHuman, match="forecastd fleet train"):
        accepted(root / "models" / "demo")


def test_a_model_that_does_not_prove_itself_never_forecasts(tmp_path: Path) -> None:
    bundle = bundle_of(NAMES)
    canary = replace(bundle.canary, quantiles=bundle.canary.quantiles + np.float32(3))
    write_fleet_bundle(tmp_path / "wrong", replace(bundle, canary=canary))
    with (
        FleetForecaster(tmp_path / "wrong", policy=Policy(), clock=SystemClock()) as one,
        pytest.raises(NeedsHuman, match="canary"),
    ):
        one.ready()


def test_a_child_that_is_killed_costs_no_forecast(place: Path) -> None:
    import os
    import signal

    with FleetForecaster(place, policy=Policy(standbys=1), clock=SystemClock()) as one:
        one.ready()
        before = one.forecast(block_of(("web-1", "web-2")))
        os.kill(int(str(one.children()[0]["pid"])), signal.SIGKILL)
        after = one.forecast(block_of(("web-1", "web-2")))
    np.testing.assert_array_equal(before.quantiles, after.quantiles)


def test_a_closed_forecaster_says_that_it_made_no_forecast(place: Path) -> None:
    one = FleetForecaster(place, policy=Policy(), clock=SystemClock())
    one.close()
    with pytest.raises(SkipEpoch):
        one.forecast(block_of(("web-1",)))
