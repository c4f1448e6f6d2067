"""The accuracy of the forecasts: pinball loss and coverage compared with simple baselines, on unseen data.

On the simulator the demo bundle forecasts servers it has never seen. On a CSV of real metrics a small network is
trained on the older part, on the file's own grid, and scored on the newest part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, PremiseCount
from forecastd.fleet.history.csv_history import data_from_csv
from forecastd.fleet.history.training_data import describe_data, simulate_data
from forecastd.settings import DEMO_FLEET_MODEL
from models.fleet.bundle import CENTER_KEY, SCALE_KEY, FleetBundle, load_fleet_bundle
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData, carry_forward, split
from models.fleet.engines import load_fleet_engine
from models.fleet.evaluation import EvaluationData, compare, fit_baselines
from models.fleet.manifest import FleetManifest
from models.train import train

UNTIL = 1_800_000_000  # 2027-01-15T08:00:00Z: long after the training data of the demo bundle
SEED = 20260301
SCENARIOS = ("varied", "healthy", "degrading", "cascade")
BASELINES = {"persistence": "the last value", "seasonal": "seasonal naive", "ets": "AutoETS"}
BASELINE_NOTE = "each baseline's quantiles come from its errors on the older 70 %; AutoETS has its own"
COVERAGE_TOLERANCE = 0.1  # of the share of values that a central interval contains


def run(*, quick: bool, seed: int = SEED, data: str | None = None) -> Iterator[Figure | PremiseCount]:
    """The figures on the simulator, and on the table at `data` if given."""
    yield from all_figures(Path(data) if data else None, quick, seed)


def all_figures(data: Path | None, quick: bool, seed: int = SEED) -> list[Figure | PremiseCount]:
    """The figures of `run` as a list."""
    figures = [
        figure for scenario in SCENARIOS[: 1 if quick else None] for figure in _simulated_figures(scenario, quick, seed)
    ]
    return figures + ([] if data is None else list(_table_figures(data, quick)))


def _simulated_figures(scenario: str, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """The demo bundle on servers of another seed; it knows only their profiles."""
    bundle = load_fleet_bundle(DEMO_FLEET_MODEL)
    servers, hours = (8, 24) if quick else (20, 96)
    specification = f"{servers}x{hours}:{scenario}"
    history = simulate_data(specification, until=UNTIL, step=bundle.manifest.step, seed=seed)
    names = tuple(f"unseen-{name}" for name in history.servers)  # a known name would use the scales of the training
    scores = score_bundle(bundle, history, names, windows=40 if quick else 400, compared=8 if quick else 96)
    yield from _figures(f"simulator, {scenario}, {servers} unseen servers, {bundle.manifest.horizon} steps", scores)


def score_bundle(
    bundle: FleetBundle, history: FleetData, names: tuple[str, ...], *, windows: int, compared: int
) -> Mapping[str, Any]:
    """The scores of a bundle on the newest part of a history whose servers have these names."""
    from models.fleet.scaling import GroupScales

    manifest, data = bundle.manifest, replace(history, servers=names)
    config = FleetTrainingConfig(
        encoder_length=manifest.encoder_length, encoder_minimum=manifest.encoder_minimum, horizon=manifest.horizon,
        levels=manifest.levels, scored_windows=windows, compared_windows=compared,
    )  # fmt: skip
    filled = carry_forward(data.values, data.max_gap)
    parts = split(data, filled, config)
    groups = GroupScales(manifest.groups, bundle.weights[CENTER_KEY], bundle.weights[SCALE_KEY])
    rows = np.array([groups.row(f"profile:{profile}") for profile in data.profiles], dtype=np.int64)
    evaluation_data = EvaluationData.build(data, filled, groups, rows)
    baselines = fit_baselines(evaluation_data, parts.train, manifest.horizon, manifest.levels)
    scores = compare(
        load_fleet_engine(bundle, threads=2), evaluation_data, baselines, parts.test, config, report=lambda _: None
    )
    return dict(scores)


def _table_figures(path: Path, quick: bool) -> Iterator[Figure | PremiseCount]:
    """A small network, trained for a few minutes on the older part of a table."""
    data = data_from_csv(path, max_series=20 if quick else 60)
    config = _small_config(data, quick)
    with tempfile.TemporaryDirectory() as directory:
        manifest = train(data, config, Path(directory) / "real", lambda _: None, created=UNTIL)
    assert isinstance(manifest, FleetManifest)
    test = manifest.scores["test"]
    assert isinstance(test, Mapping)
    label = f"{path.name}, steps of {data.step} s, {config.encoder_length} -> {config.horizon}"
    yield PremiseCount(
        f"{label}: training",
        {"history": describe_data(data), "series with their own scales": len(manifest.groups) - 1 - len(set(data.profiles)),
         "epochs": config.epochs, "windows per epoch": config.batch_size * config.batches_per_epoch,
         "calendar": ", ".join(manifest.cycles) or "none"},
        "the newest 15 % of the time is used for nothing else",
    )  # fmt: skip
    yield from _figures(label, test)


def _small_config(data: FleetData, quick: bool) -> FleetTrainingConfig:
    """Windows that fit into the parts of the table, and a network that trains in a few minutes."""
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


def _figures(label: str, scores: Mapping[str, Any]) -> Iterator[Figure | PremiseCount]:
    """The model compared with each baseline on the same windows, and its coverage."""
    sample = scores["sample"]
    for name, baseline in BASELINES.items():
        baseline_scores = sample if name == "ets" else scores
        title = f"{label}: mean pinball loss of {baseline_scores['windows']} windows, in the metrics' scales"
        yield Figure(
            title,
            baseline_scores["model"]["pinball"],
            baseline_scores[name]["pinball"],
            "",
            baseline,
            f"ratio >= 1; {BASELINE_NOTE}",
        )
    coverage = scores["model"]["coverage"]
    wins = {
        f"metrics better than {baseline}": _count_better(sample if name == "ets" else scores, name)
        for name, baseline in BASELINES.items()
    }
    yield PremiseCount(
        f"{label}: coverage of the model",
        {**{f"{float(interval):.0%} interval": f"{share:.1%}" for interval, share in coverage.items()}, **wins},
        f"each interval contains its share within {COVERAGE_TOLERANCE:.0%}",
        tuple(
            f"the {float(interval):.0%} interval contains {share:.1%}"
            for interval, share in coverage.items()
            if abs(share - float(interval)) > COVERAGE_TOLERANCE
        ),
    )


def _count_better(scores: Mapping[str, Any], baseline: str) -> str:
    """For how many metrics the model has a lower loss."""
    model_scores, baseline_scores = scores["model"]["by_metric"], scores[baseline]["by_metric"]
    wins = [
        model_scores[name]["pinball"] < baseline_scores[name]["pinball"]
        for name in model_scores
        if model_scores[name]["pinball"] is not None
    ]
    return f"{sum(wins)} of {len(wins)}"
