"""Tables of the scores of a fleet model and of the baselines: pinball loss and coverage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.rows import row
from forecastd.runtime.formatting import format_duration

MODEL_LABELS = {"model": "this model", "persistence": "last value", "seasonal": "seasonal naive", "ets": "AutoETS"}
PART_NOTES = {"validation": "; chose the best epoch", "test": "; not used in training"}


def score_rows(part: str, scores: object) -> Iterator[Table]:
    """The scores of the model and of the baselines on one part of the history. A lower pinball loss is better.

    Losses are in the scales of the training, so that all metrics count alike. A missing score is a dash.
    """
    if not isinstance(scores, Mapping):
        return
    windows, separate = scores.get("windows", "?"), scores.get("horizons", "?")
    yield row(part, Text(f"{windows} windows, {separate} non-overlapping horizons{PART_NOTES.get(part, '')}"))
    yield _overall_table(scores, season=scores.get("season_seconds"))
    sample = scores.get("sample")
    if isinstance(sample, Mapping):
        yield row("", Text(f"on {sample.get('windows', '?')} of these windows, including AutoETS of statsforecast:"))
        yield _overall_table(sample, season=scores.get("season_seconds"))
    yield from _by_metric(scores)


def _overall_table(scores: Mapping[str, Any], *, season: object) -> Table:
    table = _table("pinball\nall steps", "pinball\nfirst", "pinball\nlast", "96%\ncover", "80%\ncover", "50%\ncover")
    for name, model_scores in scores.items():
        if isinstance(model_scores, Mapping) and "pinball" in model_scores:
            season_text = f" ({format_duration(season)})" if name == "seasonal" and isinstance(season, int) else ""
            cells = (
                _format_number(model_scores.get(key), ".4f") for key in ("pinball", "pinball_first", "pinball_last")
            )
            table.add_row(
                MODEL_LABELS.get(name, name) + season_text, *cells, *_coverage_cells(model_scores, "0.96", "0.8", "0.5")
            )
    return table


def _by_metric(scores: Mapping[str, Any]) -> Iterator[Table]:
    """The pinball loss of each metric, and the coverage of the model."""
    by_model = {
        name: model_scores["by_metric"]
        for name, model_scores in scores.items()
        if isinstance(model_scores, Mapping) and "by_metric" in model_scores
    }
    if not isinstance(by_model.get("model"), Mapping):
        return
    baselines = [name for name in by_model if name != "model"]
    yield row("", Text("pinball loss by metric, each in its own scale:"))
    table = _table(
        "this\nmodel", *(MODEL_LABELS.get(name, name).replace(" ", "\n", 1) for name in baselines), "80%\ncover"
    )
    for metric, metric_scores in by_model["model"].items():
        cells = (_format_number(by_model[name].get(metric, {}).get("pinball"), ".4f") for name in baselines)
        table.add_row(
            metric, _format_number(metric_scores.get("pinball"), ".4f"), *cells, *_coverage_cells(metric_scores, "0.8")
        )
    yield table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _coverage_cells(model_scores: Mapping[str, Any], *intervals: str) -> Iterator[str]:
    coverage = model_scores.get("coverage")
    for interval in intervals:
        yield _format_number(coverage.get(interval) if isinstance(coverage, Mapping) else None, ".0%")


def _format_number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"
