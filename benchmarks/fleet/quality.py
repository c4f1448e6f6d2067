"""How good the forecasts are: pinball loss and coverage beside what anybody could write down, on untouched time.

On the simulator the demo bundle forecasts servers it has never seen. On a CSV of real metrics a small network is trained on
the older part of it, on its own grid, and scored on the newest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Count, Figure
from forecastd.fleet.past import described, simulated
from forecastd.fleet.table import from_table
from forecastd.settings import EMBEDDED_FLEET_MODEL
from models.fleet.bundle import FleetBundle, load_fleet_bundle
from models.fleet.config import FleetTrainingConfig
from models.fleet.data import Cut, FleetData, carried, split
from models.fleet.engines import load_fleet_engine
from models.fleet.manifest import FleetManifest
from models.training import train

UNTIL = 1_800_000_000  # 2027-01-15T08:00:00Z: long after everything that the demo bundle was trained on
SEED = 20260301
SCENARIOS = ("varied", "healthy", "degrading", "cascade")
RIVALS = {"persistence": "the last value", "seasonal": "seasonal naive", "ets": "AutoETS"}
SOURCES = "each baseline's quantiles are those of its own errors on the older 70 %; AutoETS has its own"
OFF = 0.1  # how far a central interval may be off the share that it should hold


def run(*, quick: bool, seed: int = SEED, data: str | None = None) -> Iterator[Figure | Count]:
    """The figures on the simulator, and on the table at `data` where one is given."""
    yield from quality(Path(data) if data else None, quick, seed)


def quality(data: Path | None, quick: bool, seed: int = SEED) -> list[Figure | Count]:
    """As `run`, all at once."""
    found = [figure for scenario in SCENARIOS[: 1 if quick else None] for figure in _simulated(scenario, quick, seed)]
    return found + ([] if data is None else list(_real(data, quick)))


def _simulated(scenario: str, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """The demo bundle on servers of another seed, of which it knows the profiles only."""
    bundle = load_fleet_bundle(EMBEDDED_FLEET_MODEL)
    servers, hours = (8, 24) if quick else (20, 96)
    wish = f"{servers}x{hours}:{scenario}"
    history = simulated(wish, until=UNTIL, step=bundle.manifest.step, seed=seed)
    names = tuple(f"unseen-{name}" for name in history.servers)  # or a server of the training would lend its scales
    scores = score_bundle(bundle, history, names, windows=40 if quick else 400, compared=8 if quick else 96)
    yield from _figures(f"simulator, {scenario}, {servers} servers never seen, {bundle.manifest.horizon} steps", scores)


def score_bundle(
    bundle: FleetBundle, history: FleetData, names: tuple[str, ...], *, windows: int, compared: int
) -> Mapping[str, Any]:
    """The scores of a bundle on the newest part of a history, its servers known by these names."""
    from models.fleet.comparison import Ground, Rivals, Size, compare
    from models.fleet.groups import Groups

    manifest, data = bundle.manifest, replace(history, servers=names)
    filled, horizon = carried(data.values, data.max_gap), manifest.horizon
    parts = split(data, filled, Cut(manifest.encoder_minimum, manifest.encoder_length, horizon, 0.15, 0.15))
    groups = Groups(manifest.groups, bundle.center, bundle.scale)
    rows = np.array([groups.row(f"profile:{profile}") for profile in data.profiles], dtype=np.int64)
    ground = Ground.of(data, filled, groups, rows)
    size = Size(manifest.encoder_length, horizon, manifest.levels, windows, compared, seed=0)
    rivals = Rivals.of(ground, parts.train, horizon, manifest.levels)
    return compare(load_fleet_engine(bundle, threads=2), ground, rivals, parts.test, size, tell=lambda _: None)


def _real(path: Path, quick: bool) -> Iterator[Figure | Count]:
    """A small network, trained for a few minutes on the older part of a table."""
    data = from_table(path, most=20 if quick else 60)
    config = _small(data, quick)
    with tempfile.TemporaryDirectory() as place:
        manifest = train(data, config, Path(place) / "real", lambda _: None, created=UNTIL)
    assert isinstance(manifest, FleetManifest)
    test = manifest.scores["test"]
    assert isinstance(test, Mapping)
    about = f"{path.name}, steps of {data.step} s, {config.encoder_length} -> {config.horizon}"
    yield Count(
        f"{about}: what was trained on",
        {"history": described(data), "series with scales of their own": len(manifest.groups) - 1 - len(set(data.profiles)),
         "epochs": config.epochs, "windows an epoch": config.batch_size * config.batches_per_epoch,
         "calendar": ", ".join(manifest.cycles) or "none"},
        "the newest 15 % of the time were used for nothing else",
    )  # fmt: skip
    yield from _figures(about, test)


def _small(data: FleetData, quick: bool) -> FleetTrainingConfig:
    """Windows that fit into the parts of the table, and a network for a few minutes."""
    newest = max(8, int(0.15 * data.ticks))
    length = min(144, newest // 3)
    horizon = min(48, max(2, newest // 8))
    return FleetTrainingConfig(
        encoder_length=length,
        encoder_minimum=max(2, length // 4),
        horizon=horizon,
        hidden_size=8 if quick else 24,
        epochs=1 if quick else 10,
        batches_per_epoch=10 if quick else 100,
        scored_windows=40 if quick else 400,
        compared_windows=8 if quick else 96,
        accelerator="cpu",
    )


def _figures(about: str, scores: Mapping[str, Any]) -> Iterator[Figure | Count]:
    """The model beside each baseline, on the same windows, and what its intervals held."""
    sample = scores["sample"]
    for name, peer in RIVALS.items():
        on = sample if name == "ets" else scores
        told = f"{about}: mean pinball loss of {on['windows']} windows, in the metrics' scales"
        yield Figure(told, on["model"]["pinball"], on[name]["pinball"], "", peer, f"ratio >= 1; {SOURCES}")
    held = scores["model"]["coverage"]
    beaten = {
        f"metrics better than {peer}": _better(sample if name == "ets" else scores, name)
        for name, peer in RIVALS.items()
    }
    yield Count(
        f"{about}: what the model's intervals held",
        {**{f"{float(interval):.0%} interval": f"{share:.1%}" for interval, share in held.items()}, **beaten},
        f"each interval holds its share within {OFF:.0%}",
        tuple(
            f"the {float(interval):.0%} interval held {share:.1%}"
            for interval, share in held.items()
            if abs(share - float(interval)) > OFF
        ),
    )


def _better(scores: Mapping[str, Any], rival: str) -> str:
    """Of how many metrics the model's loss is lower."""
    mine, others = scores["model"]["by_metric"], scores[rival]["by_metric"]
    wins = [mine[name]["pinball"] < others[name]["pinball"] for name in mine if mine[name]["pinball"] is not None]
    return f"{sum(wins)} of {len(wins)}"
