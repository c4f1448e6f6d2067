"""A bundle's manifest for people: what it forecasts, from what, trained on what, and how well beside the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.screen import row
from forecastd.clock import iso
from models.manifest import Manifest


def manifest_rows(manifest: Manifest) -> Iterator[Table]:
    """The manifest as rows of the usual shape, its metrics last."""
    training, hours = manifest.training, manifest.step / 3600
    levels = ", ".join(f"{100 * level:g}%" for level in manifest.levels)
    kind = "synthetic" if training.synthetic else "real"
    told = {
        "bundle": f"{manifest.name}, sha256 {manifest.sha256}",
        "forecast": f"log-return up to {manifest.horizon * hours:g} h ahead, in steps of {hours:g} h\nquantiles {levels}",
        "encoder": f"{manifest.encoder_length} steps ({manifest.encoder_length * hours:g} h)",
        "features": f"past: {', '.join(manifest.past)}\nknown: {', '.join(manifest.known)}",
        "network": ", ".join(
            f"{name} {size}" for name, size in vars(manifest.network).items() if isinstance(size, int)
        ),
        "training": f"{iso(training.start)} to {iso(training.end)}, {training.rows} rows of {kind} data: {training.source}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for label, text in told.items():
        yield row(label, Text(text))
    for part, scores in manifest.metrics.items():
        if isinstance(scores, Mapping):
            yield row(part, Text(f"{scores.get('windows', '?')} windows, data the training never saw"))
            yield scores_table(scores)


def scores_table(scores: Mapping[str, Any]) -> Table:
    """The model's scores of one part of the data beside the baselines'. Lower is better, but for the last two columns."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in ("pinball", "at horizon", "mae", "rmse", "80% holds", "direction"):
        table.add_column(name, justify="right")
    for name, found in scores.items():
        if isinstance(found, Mapping):
            inside = found.get("coverage_last", {}).get("0.8")
            values = [found.get(key) for key in ("pinball", "pinball_last", "mae", "rmse")]
            table.add_row(
                name,
                *(_number(v, ".5f") for v in values),
                _number(inside, ".0%"),
                _number(found.get("direction"), ".0%"),
            )
    return table


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"
