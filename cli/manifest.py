"""A bundle's manifest as tables: what it forecasts, its training data, and its scores next to those of the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.rows import row
from forecastd.clock import to_iso
from forecastd.runtime.formatting import format_duration
from models.bundle.manifest import Manifest
from models.fleet.manifest import FleetManifest
from models.market.manifest import MarketManifest

MARKET_LABELS = {"model": "this model", "zero": "zero return", "drift": "drift", "volatility": "zero, scaled"}
FLEET_LABELS = {"model": "this model", "persistence": "last value", "seasonal": "seasonal naive", "ets": "AutoETS"}
PART_NOTES = {"validation": "; selected the best epoch", "test": "; used for nothing else"}


def manifest_tables(manifest: Manifest) -> Iterator[Table]:
    """The manifest of a bundle of any kind as labeled rows, the scores last."""
    training, levels = manifest.training, ", ".join(f"{100 * level:g}%" for level in manifest.levels)
    own: dict[str, str] = {}
    if isinstance(manifest, MarketManifest):
        own = _market_fields(manifest, levels)
    elif isinstance(manifest, FleetManifest):
        own = _fleet_fields(manifest, levels)
    fields = {
        "bundle": f"{manifest.name}, sha256 {manifest.sha256}",
        **own,
        "training": f"{training.rows} rows of {'synthetic' if training.synthetic else 'real'} data: {training.source}\n"
        f"trained on {to_iso(training.parts['train'].start)} to {to_iso(training.trained_until)},\n"
        f"compared with the baselines on later rows, to {to_iso(training.end)}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for label, text in fields.items():
        yield row(label, Text(text))
    for part in manifest.scores:
        yield from score_tables(manifest, part)


def _market_fields(manifest: MarketManifest, levels: str) -> dict[str, str]:
    step, horizon = format_duration(manifest.step), format_duration(manifest.horizon * manifest.step)
    return {
        "forecast": f"log-return up to {horizon} ahead, in steps of {step}\nquantiles {levels}",
        "encoder": f"{manifest.encoder_length} steps ({format_duration(manifest.encoder_length * manifest.step)})",
        "features": f"past: {', '.join(manifest.past)}\nknown: {', '.join(manifest.known)}",
        "network": _network_sizes(manifest),
    }


def _fleet_fields(manifest: FleetManifest, levels: str) -> dict[str, str]:
    step, horizon = manifest.step, format_duration(manifest.horizon * manifest.step)
    servers = sum(group.startswith("server:") for group in manifest.groups)
    metrics = (f"{metric.name} ({metric.unit})" if metric.unit else metric.name for metric in manifest.metrics)
    return {
        "forecast": f"{manifest.horizon} steps of {step} s ({horizon}) ahead\nquantiles {levels}",
        "encoder": f"{manifest.encoder_length} steps ({format_duration(manifest.encoder_length * step)}); "
        f"at least {manifest.encoder_minimum}",
        "metrics": ", ".join(metrics),
        "servers": f"{servers} with their own scales; others use those of their profile "
        f"({', '.join(manifest.profiles[1:])}) or of all servers",
        "calendar": ", ".join(manifest.cycles) or "none: the history was too short",
        "network": _network_sizes(manifest),
    }


def _network_sizes(manifest: MarketManifest | FleetManifest) -> str:
    return ", ".join(f"{name} {size}" for name, size in vars(manifest.network).items() if isinstance(size, int))


def score_tables(manifest: Manifest, part: str) -> Iterator[Table]:
    """The scores of the model and of the baselines on one part of the data, see `part_tables`."""
    yield from part_tables(part, manifest.scores.get(part), is_fleet=isinstance(manifest, FleetManifest))


def part_tables(part: str, scores: object, *, is_fleet: bool) -> Iterator[Table]:
    """The scores of the model and of the baselines on one part of the data. A lower pinball loss is better.

    Of a market, all columns but the first are for the last step, the topic's horizon. Of a fleet, losses are in the scales
    of the training, so that all metrics count alike. A missing score is a dash.
    """
    if not isinstance(scores, Mapping):
        return
    windows, horizons = scores.get("windows", "?"), scores.get("horizons", "?")
    yield row(part, Text(f"{windows} windows, {horizons} non-overlapping horizons{PART_NOTES.get(part, '')}"))
    if not is_fleet:
        yield _market_table(scores)
        return
    yield _fleet_table(scores, scores.get("season_seconds"))
    sample = scores.get("sample")
    if isinstance(sample, Mapping):
        yield row("", Text(f"on {sample.get('windows', '?')} of these windows, including AutoETS of statsforecast:"))
        yield _fleet_table(sample, scores.get("season_seconds"))
    yield from _by_metric(scores)


def _market_table(scores: Mapping[str, Any]) -> Table:
    table = _table("pinball\nall steps", "pinball\nat horizon", "MAE", "RMSE", "80% cover", "direction")
    for name, score in scores.items():
        if isinstance(score, Mapping):
            errors = (_number(score.get(key), ".5f") for key in ("pinball", "pinball_last", "mae", "rmse"))
            cover, direction = _share(score, "coverage_last", "0.8"), _number(score.get("direction"), ".0%")
            table.add_row(MARKET_LABELS.get(name, name), *errors, cover, direction)
    return table


def _fleet_table(scores: Mapping[str, Any], season: object) -> Table:
    table = _table("pinball\nall steps", "pinball\nfirst", "pinball\nlast", "96%\ncover", "80%\ncover", "50%\ncover")
    for name, score in scores.items():
        if isinstance(score, Mapping) and "pinball" in score:
            period = f" ({format_duration(season)})" if name == "seasonal" and isinstance(season, int) else ""
            losses = (_number(score.get(key), ".4f") for key in ("pinball", "pinball_first", "pinball_last"))
            covers = (_share(score, "coverage", interval) for interval in ("0.96", "0.8", "0.5"))
            table.add_row(FLEET_LABELS.get(name, name) + period, *losses, *covers)
    return table


def _by_metric(scores: Mapping[str, Any]) -> Iterator[Table]:
    """The pinball loss of each metric, and the coverage of the model."""
    by_model = {
        name: score["by_metric"]
        for name, score in scores.items()
        if isinstance(score, Mapping) and "by_metric" in score
    }
    if not isinstance(by_model.get("model"), Mapping):
        return
    baselines = [name for name in by_model if name != "model"]
    yield row("", Text("pinball loss by metric, each in its own scale:"))
    labels = (FLEET_LABELS.get(name, name).replace(" ", "\n", 1) for name in baselines)
    table = _table("this\nmodel", *labels, "80%\ncover")
    for metric, score in by_model["model"].items():
        losses = (_number(by_model[name].get(metric, {}).get("pinball"), ".4f") for name in baselines)
        table.add_row(metric, _number(score.get("pinball"), ".4f"), *losses, _share(score, "coverage", "0.8"))
    yield table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _share(score: Mapping[str, Any], name: str, interval: str) -> str:
    coverage = score.get(name)
    return _number(coverage.get(interval) if isinstance(coverage, Mapping) else None, ".0%")


def _number(value: object, format_spec: str) -> str:
    return format(value, format_spec) if isinstance(value, int | float) else "-"
