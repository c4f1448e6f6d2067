"""Bundles for tests: random fleet networks, and variants of a market bundle. They load, run and pass their canary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from forecastd.fleet.contract import MetricDefinition
from models.base import ModelInput
from models.bundle.bundle import write_bundle
from models.bundle.records import Interval, TrainingRecord
from models.fleet.bundle import CANARY_SERVERS, CENTER_KEY, SCALE_KEY, FleetBundle, fleet_canary_input
from models.fleet.engines import load_fleet_engine
from models.fleet.manifest import DEFAULT_GROUP, Anchor, FleetManifest, ModelMetric, fleet_reals
from models.market.bundle import MarketBundle, make_market_canary, market_canary_input
from models.market.engine import MarketEngine
from models.market.manifest import MarketManifest
from models.tft.config import TftConfig
from models.tft.parameters import parameter_shapes

TICK = 344_000_000  # of the canary


def model_metrics(metrics: tuple[MetricDefinition, ...]) -> tuple[ModelMetric, ...]:
    """Metrics of the fleet's contract as those of a model."""
    return tuple(ModelMetric(item.name, item.unit, item.low, item.high, item.transform) for item in metrics)


def random_fleet_bundle(
    metrics: tuple[ModelMetric, ...],
    *,
    profiles: tuple[str, ...] = ("other", "web"),
    groups: tuple[str, ...] = (),
    cycles: tuple[str, ...] = ("day",),
    sizes: tuple[int, int, int, int] = (8, 4, 2, 1),
    embedding_size: int = 2,
    encoder_length: int = 24,
    encoder_minimum: int = 8,
    horizon: int = 6,
    levels: tuple[float, ...] = (0.1, 0.5, 0.9),
    anchors: tuple[Anchor, ...] = (),
    name: str = "random",
    step: int = 5,
    engine: str = "fused",
    seed: int = 0,
) -> FleetBundle:
    """A bundle in memory with random weights and scales; its canary is what `engine` gives.

    `sizes`: hidden size, hidden continuous size, attention heads, LSTM layers. `groups`: in addition to those
    of the profiles.
    """
    rng = np.random.default_rng(seed)
    groups = (DEFAULT_GROUP, *(f"profile:{profile}" for profile in profiles[1:]), *groups)
    encoder, decoder = fleet_reals(tuple(metric.name for metric in metrics), cycles)
    network = TftConfig(*sizes, encoder, decoder, len(levels), len(metrics), len(profiles), embedding_size)
    parts = {part: Interval(10 * row, 10 * row + 10, 1) for row, part in enumerate(("train", "validation", "test"))}
    manifest = FleetManifest(
        name=name, metrics=metrics, cycles=cycles, profiles=profiles, groups=groups, step=step,
        encoder_length=encoder_length, encoder_minimum=encoder_minimum, horizon=horizon, levels=levels, network=network,
        training=TrainingRecord(0, 30, 6, "0" * 64, "random", True, 0, parts, {}), versions={}, scores={}, files={},
        anchors=anchors,
    )  # fmt: skip
    weights = {
        key: rng.normal(0, 1.2 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.4, shape).astype(np.float32)
        for key, shape in parameter_shapes(network).items()
    }
    table = len(groups), len(metrics)
    weights[CENTER_KEY] = rng.uniform(1, 3, table).astype(np.float32)
    weights[SCALE_KEY] = rng.uniform(0.3, 1.0, table).astype(np.float32)
    rows = np.arange(CANARY_SERVERS)
    values = rng.uniform(1, 9, (CANARY_SERVERS, encoder_length, len(metrics))).astype(np.float32)
    tick = np.array([TICK])
    canary = {"tick": tick, "values": values, "profiles": rows % len(profiles), "groups": rows % len(groups)}
    bundle = FleetBundle(Path("nowhere"), manifest, weights, canary)
    quantiles = load_fleet_engine(bundle, engine).forecast(fleet_canary_input(bundle))
    return replace(bundle, canary={**canary, "quantiles": quantiles})


def write_longer_bundle(path: Path, bundle: MarketBundle, more: int) -> MarketManifest:
    """Write the same network under the name "longer", with an encoder that is `more` steps longer."""
    manifest = replace(bundle.manifest, name="longer", encoder_length=bundle.manifest.encoder_length + more)
    old = market_canary_input(bundle)
    inputs = ModelInput(
        old.end,
        old.step,
        np.concatenate([old.target[:more] + 0.01, old.target]),
        np.concatenate([old.past[:more], old.past]),
        np.concatenate([old.known[:more], old.known]),
    )
    longer = replace(bundle, manifest=manifest)
    canary = make_market_canary(inputs, MarketEngine(longer).predict(inputs).quantiles)
    return write_bundle(path, replace(longer, canary=canary))
