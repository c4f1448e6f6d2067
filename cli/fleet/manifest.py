"""The manifest of a fleet bundle as text: what it forecasts, its training data, and its scores."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cli.fleet.score_tables import score_rows
from cli.rows import row
from forecastd.clock import to_iso
from models.fleet.manifest import FleetManifest


def manifest_rows(manifest: FleetManifest) -> Iterator[Table]:
    """The manifest as labeled rows, the scores last."""
    training, step = manifest.training, manifest.step
    levels = ", ".join(f"{100 * level:g}%" for level in manifest.levels)
    servers = sum(group.startswith("server:") for group in manifest.groups)
    metrics = (f"{metric.name} ({metric.unit})" if metric.unit else metric.name for metric in manifest.metrics)
    sizes = (f"{name} {size}" for name, size in vars(manifest.network).items() if isinstance(size, int))
    fields = {
        "bundle": f"{manifest.name}, sha256 {manifest.sha256}",
        "forecast": f"{manifest.horizon} steps of {step} s ({manifest.horizon * step / 60:g} min) ahead\n"
        f"quantiles {levels}",
        "encoder": f"{manifest.encoder_length} steps ({manifest.encoder_length * step / 60:g} min); "
        f"at least {manifest.encoder_minimum}",
        "metrics": ", ".join(metrics),
        "servers": f"{servers} with their own scales; others use those of their profile "
        f"({', '.join(manifest.profiles[1:])}) or of all servers",
        "calendar": ", ".join(manifest.cycles) or "none: the history was too short",
        "network": ", ".join(sizes),
        "training": f"{training.rows} rows of {'simulated' if training.synthetic else 'real'} data: {training.source}\n"
        f"trained on {to_iso(training.parts['train'].start)} to {to_iso(training.trained_until)},\n"
        f"compared with the baselines on later rows, to {to_iso(training.end)}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for label, text in fields.items():
        yield row(label, Text(text))
    for part, scores in manifest.scores.items():
        yield from score_rows(part, scores)
