"""A bundle's manifest as tables: target, inputs, training data, and scores next to those of the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.fleet.manifest import manifest_rows as fleet_manifest_rows
from cli.rows import row
from forecastd.clock import to_iso
from models.bundle.manifest import Manifest
from models.fleet.manifest import FleetManifest
from models.market.manifest import MarketManifest

BASELINE_LABELS = {"model": "this model", "zero": "zero return", "drift": "drift", "volatility": "zero, scaled"}
PART_NOTES = {"validation": "; selected the best epoch", "test": "; used for nothing else"}


def manifest_tables(manifest: Manifest) -> Iterator[Table]:
    """The manifest of a bundle of any kind as tables."""
    if isinstance(manifest, MarketManifest):
        yield from market_manifest_rows(manifest)
    elif isinstance(manifest, FleetManifest):
        yield from fleet_manifest_rows(manifest)


def market_manifest_rows(manifest: MarketManifest) -> Iterator[Table]:
    """The manifest of a market bundle as rows, its scores last."""
    training, hours = manifest.training, manifest.step / 3600
    levels = ", ".join(f"{100 * level:g}%" for level in manifest.levels)
    kind = "synthetic data" if training.synthetic else "real data"
    fields = {
        "bundle": f"{manifest.name}, sha256 {manifest.sha256}",
        "forecast": f"log-return up to {manifest.horizon * hours:g} h ahead, in steps of {hours:g} h\nquantiles {levels}",
        "encoder": f"{manifest.encoder_length} steps ({manifest.encoder_length * hours:g} h)",
        "features": f"past: {', '.join(manifest.past)}\nknown: {', '.join(manifest.known)}",
        "network": ", ".join(
            f"{name} {size}" for name, size in vars(manifest.network).items() if isinstance(size, int)
        ),
        "training": f"{training.rows} rows of {kind}: {training.source}\n"
        f"trained on {to_iso(training.parts['train'].start)} to {to_iso(training.trained_until)},\n"
        f"compared with the baselines on later rows, to {to_iso(training.end)}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for label, text in fields.items():
        yield row(label, Text(text))
    for part, scores in manifest.scores.items():
        yield from score_rows(part, scores)


def score_rows(part: str, scores: object) -> Iterator[Table]:
    """The scores of the model and the baselines on one part of the data.

    Lower is better, except for the last two columns. All columns but the first are for the last step, the topic's horizon.
    A missing score is a dash.
    """
    if not isinstance(scores, Mapping):
        return
    windows, horizons = scores.get("windows", "?"), scores.get("horizons", "?")
    note = PART_NOTES.get(part, "")
    yield row(part, Text(f"{windows} windows, {horizons} non-overlapping horizons{note}"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in ("pinball\nall steps", "pinball\nat horizon", "MAE", "RMSE", "80% cover", "direction"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, baseline in scores.items():
        if isinstance(baseline, Mapping):
            table.add_row(BASELINE_LABELS.get(name, name), *_cells(baseline))
    yield table


def _cells(score: Mapping[str, Any]) -> Iterator[str]:
    for name in ("pinball", "pinball_last", "mae", "rmse"):
        yield _number(score.get(name), ".5f")
    coverage = score.get("coverage_last")
    yield _number(coverage.get("0.8") if isinstance(coverage, Mapping) else None, ".0%")
    yield _number(score.get("direction"), ".0%")


def _number(value: object, format_spec: str) -> str:
    return format(value, format_spec) if isinstance(value, int | float) else "-"
