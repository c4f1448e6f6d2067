"""The forecaster with a real child process: a window block becomes a forecast of every server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.fleet.contract import METRIC_NAMES, METRICS
from forecastd.fleet.forecast.forecaster import FleetForecaster
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.bundle_store import BundleStore, FallbackBundles
from forecastd.supervise.policy import SupervisionPolicy
from models.bundle.bundle import write_bundle
from models.fleet.base import FleetInput
from models.fleet.bundle import FleetBundle, load_fleet_bundle
from models.fleet.engines import load_fleet_engine
from models.fleet.manifest import OTHER_PROFILE, FleetManifest, fleet_reals
from tests.support.bundles import model_metrics, random_fleet_bundle

TICK, LENGTH, MINIMUM, HORIZON = 344_000_000, 20, 8, 12
LEVELS = (0.1, 0.5, 0.9)
PROFILES = (OTHER_PROFILE, "web", "database")


def make_bundle(names: tuple[str, ...], step: int = 5) -> FleetBundle:
    """A small random network for these metrics of the contract; its canary comes from the numpy engine."""
    metrics = model_metrics(tuple(metric for metric in METRICS if metric.name in names))
    return random_fleet_bundle(
        metrics, profiles=PROFILES, groups=("server:web-3",), encoder_length=LENGTH, encoder_minimum=MINIMUM,
        horizon=HORIZON, levels=LEVELS, name="small", step=step, seed=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "bundle"
    write_bundle(path, make_bundle(METRIC_NAMES))
    return path


@pytest.fixture(scope="module")
def forecaster(bundle_path: Path) -> Iterator[FleetForecaster]:
    with FleetForecaster(bundle_path, policy=SupervisionPolicy(), clock=SystemClock(), step=5) as running:
        running.check()
        yield running


def make_block(servers: tuple[str, ...], length: int = LENGTH, tick: int = TICK) -> WindowBlock:
    rng = np.random.default_rng(len(servers))
    values = rng.uniform(5, 60, (len(servers), length, len(METRIC_NAMES))).astype(np.float32)
    profiles = tuple(server.split("-")[0] for server in servers)
    return WindowBlock(tick, servers, profiles, ("ok",) * len(servers), values)


def test_forecaster_child_equals_engine_by_server_name(forecaster: FleetForecaster, bundle_path: Path) -> None:
    block = make_block(("web-1", "database-1", "web-3", "cache-9"))
    forecast = forecaster.forecast(block)
    lengths = np.full(4, LENGTH)
    inputs = FleetInput(TICK, 5, block.servers, block.profiles, block.values, lengths)
    expected = load_fleet_engine(load_fleet_bundle(bundle_path), "fused").forecast(inputs)
    assert forecast.servers == block.servers
    assert forecast.models == ("tft",) * 4
    np.testing.assert_allclose(forecast.quantiles, expected.transpose(0, 3, 1, 2), rtol=1e-3, atol=1e-3)
    assert (forecast.tick, forecast.step, forecast.horizon, forecast.bundle) == (TICK, 5, HORIZON, "small")
    assert forecast.bundle_sha256 == forecaster.manifest.sha256


def test_forecaster_unready_server_gets_heuristic(forecaster: FleetForecaster) -> None:
    block = make_block(("web-1", "web-2", "web-4", "web-5", "web-6"))
    block.values[1, : LENGTH - MINIMUM + 1] = np.nan  # one tick too few
    block.values[2, : LENGTH - MINIMUM] = np.nan  # just enough
    block.values[3] = np.nan  # no values
    block.values[4, :, 3] = np.nan  # one metric is missing
    forecast = forecaster.forecast(block)
    assert forecast.models == ("tft", "heuristic", "tft", "heuristic", "heuristic")
    assert np.isnan(forecast.quantiles[3]).all()
    assert np.isfinite(forecast.quantiles[[0, 1, 2]]).all()
    assert np.isnan(forecast.quantiles[4, :, 3]).all()
    assert np.isfinite(np.delete(forecast.quantiles[4], 3, axis=1)).all()
    alone = forecaster.forecast(WindowBlock(TICK, block.servers[2:3], block.profiles[2:3], ("ok",), block.values[2:3]))
    np.testing.assert_allclose(forecast.quantiles[2], alone.quantiles[0], rtol=1e-4, atol=1e-4)


def test_forecast_encoded_json_matches_quantiles(forecaster: FleetForecaster) -> None:
    block = make_block(("web-1", "web-2"))
    block.values[1, :LENGTH] = np.nan
    block.values[1, -1] = 7.0
    forecast = forecaster.forecast(block)
    for row, (server, model) in enumerate((("web-1", "tft"), ("web-2", "heuristic"))):
        document = json.loads(forecast.encoded[row])
        metrics = document.pop("metrics")
        assert (document["server"], document["profile"], document["model"], document["bundle"]) == (
            server,
            "web",
            model,
            "small",
        )
        assert (document["horizon_steps"], document["horizon_seconds"], document["horizon"]) == (12, 60, "1 min")
        assert document["origin"] == "2024-07-03T09:46:40Z"  # TICK * 5 s
        assert document["times"] == {"first": "2024-07-03T09:46:45Z", "last": "2024-07-03T09:47:40Z"}
        assert list(metrics) == list(METRIC_NAMES)
        for column, metric in enumerate(METRICS):
            assert metrics[metric.name]["unit"] == metric.unit
            for bundle_path, level in ((0, "0.1"), (1, "0.5"), (2, "0.9")):
                np.testing.assert_allclose(
                    metrics[metric.name][level], forecast.quantiles[row, :, column, bundle_path], rtol=1e-3, atol=6e-4
                )
        requested = json.loads(forecast.encode(row, METRICS, (0.5, 0.75), ("cpu_percent",)))
        assert requested["levels"] == [0.5, 0.75]
        assert list(requested["metrics"]) == ["cpu_percent"]
        assert {**requested, "metrics": 0, "levels": 0} == {**document, "metrics": 0, "levels": 0}


def test_forecaster_accepts_block_shorter_than_encoder(
    forecaster: FleetForecaster,
) -> None:
    assert forecaster.forecast(make_block(("web-1",), MINIMUM)).models == ("tft",)
    assert forecaster.forecast(make_block(("web-1",), MINIMUM - 1)).models == ("heuristic",)


def test_forecaster_without_servers_gives_empty_forecast(forecaster: FleetForecaster) -> None:
    forecast = forecaster.forecast(make_block(()))
    assert (forecast.servers, forecast.encoded, forecast.quantiles.shape) == ((), (), (0, HORIZON, 14, 3))


def test_forecaster_with_subset_of_metrics_forecasts_them(tmp_path: Path) -> None:
    names = ("cpu_percent", "latency_ms", "error_percent")
    write_bundle(tmp_path / "some", make_bundle(names))
    block = make_block(("web-1", "web-2"))
    block.values[:, :, METRIC_NAMES.index("swap_percent")] = (
        np.nan
    )  # a metric that the model does not use may be missing
    block.values[1, :, METRIC_NAMES.index("latency_ms")] = np.nan
    with FleetForecaster(tmp_path / "some", policy=SupervisionPolicy(), clock=SystemClock()) as running:
        prepared = running.prepare_input(block)
        forecast = running.forecast(block)
    assert forecast.metrics == names
    assert forecast.models == ("tft", "heuristic")
    assert "latency_ms" in prepared.reason(1)


def test_forecaster_refuses_incompatible_bundle(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match="ticks of 5 s, but the fleet uses 10 s"):
        FleetForecaster(bundle_path, step=10)
    valid = make_bundle(METRIC_NAMES)
    for index, (change, message) in enumerate(
        ((("cpu_percent", "share"), "cpu_percent in share"), (("temperature", "%"), "forecasts temperature"))
    ):
        metrics = (replace(valid.manifest.metrics[0], name=change[0], unit=change[1]), *valid.manifest.metrics[1:])
        encoder, decoder = fleet_reals(tuple(metric.name for metric in metrics), ("day",))
        network = replace(valid.manifest.network, encoder_reals=encoder, decoder_reals=decoder)
        weights = {key.replace("cpu_percent", change[0]): value for key, value in valid.weights.items()}
        other = replace(valid, manifest=replace(valid.manifest, metrics=metrics, network=network), weights=weights)
        write_bundle(tmp_path / str(index), other)
        with pytest.raises(NeedsHuman, match=message):
            FleetForecaster(tmp_path / str(index), step=5)


def test_forecaster_refuses_market_bundle(root: Path) -> None:
    with pytest.raises(NeedsHuman, match="forecastd fleet train"):
        FleetForecaster(root / "models" / "demo")


def test_forecaster_with_failed_canary_never_forecasts(tmp_path: Path) -> None:
    bundle = make_bundle(METRIC_NAMES)
    canary = {**bundle.canary, "quantiles": bundle.canary["quantiles"] + 3}
    write_bundle(tmp_path / "wrong", replace(bundle, canary=canary))
    with (
        FleetForecaster(tmp_path / "wrong", policy=SupervisionPolicy(), clock=SystemClock()) as running,
        pytest.raises(NeedsHuman, match="canary"),
    ):
        running.check()


def test_forecaster_survives_killed_child(bundle_path: Path) -> None:
    import os
    import signal

    with FleetForecaster(bundle_path, policy=SupervisionPolicy(standbys=1), clock=SystemClock()) as running:
        running.check()
        before = running.forecast(make_block(("web-1", "web-2")))
        os.kill(int(str(running.children()[0]["pid"])), signal.SIGKILL)
        after = running.forecast(make_block(("web-1", "web-2")))
    np.testing.assert_array_equal(before.quantiles, after.quantiles)


def test_forecaster_closed_raises_skip(bundle_path: Path) -> None:
    running = FleetForecaster(bundle_path, policy=SupervisionPolicy(), clock=SystemClock())
    running.close()
    with pytest.raises(SkipEpoch):
        running.forecast(make_block(("web-1",)))


def test_damaged_bundle_falls_back_to_copy_of_last_good_one(bundle_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_path, tmp_path / "copy"))
    fallback = FallbackBundles(BundleStore(tmp_path / "bundles", SystemClock()), "fleet", FleetManifest.read)
    block = make_block(("web-1", "web-2"))
    with FleetForecaster(copy, policy=SupervisionPolicy(), fallback=fallback) as running:
        before = running.forecast(block)
    weights = copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with FleetForecaster(copy, policy=SupervisionPolicy(), fallback=fallback) as running:
        running.check()
        after = running.forecast(block)
        assert "is truncated" in running.warnings[0]
        assert running.bundle == tmp_path / "bundles" / running.manifest.sha256
    np.testing.assert_array_equal(before.quantiles, after.quantiles)
    with (
        FleetForecaster(copy, policy=SupervisionPolicy()) as running,
        pytest.raises(NeedsHuman, match="is truncated"),
    ):
        running.check()
