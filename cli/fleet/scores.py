"""A fleet's model beside the baselines, for people: pinball loss and how often the outcomes were where they should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from cli.screen import row

if TYPE_CHECKING:
    from cli.progress import TrainingScreen
    from forecastd.fleet.training import FleetTrained

NAMES = {"model": "this model", "persistence": "last value", "seasonal": "seasonal naive", "ets": "AutoETS"}
USES = {"validation": "; chose the best epoch", "test": "; used for nothing else"}


def show_result(screen: TrainingScreen, trained: FleetTrained) -> None:
    """The scores of a fleet's model beside the baselines', and how to use it."""
    from models.fleet.manifest import to_json

    manifest, path = trained.manifest, trained.path
    below = path.absolute().parent == trained.models.absolute()
    copy = "" if below else f"copy it into {trained.models}, and "
    after = f"""forecastd model check {path}
forecastd fleet serve --model {path}
or, while a fleet runs: {copy}POST /admin/reload-model {{"name": "{path.name}"}}"""
    screen.show(to_json(manifest), score_rows("test", manifest.scores.get("test")), path, manifest.sha256, after)


def score_rows(part: str, scores: object) -> Iterator[Table]:
    """The model's scores of one part of the history beside the baselines'. Lower is better, but for the shares held.

    In the scales of the training, so that all metrics count alike. What a manifest lacks is a dash.
    """
    if not isinstance(scores, Mapping):
        return
    windows, apart = scores.get("windows", "?"), scores.get("horizons", "?")
    yield row(part, Text(f"{windows} windows, {apart} horizons that do not overlap{USES.get(part, '')}"))
    yield _overall(scores, season=scores.get("season_seconds"))
    sample = scores.get("sample")
    if isinstance(sample, Mapping):
        yield row("", Text(f"on {sample.get('windows', '?')} of these windows, with AutoETS of statsforecast too:"))
        yield _overall(sample, season=scores.get("season_seconds"))
    yield from _by_metric(scores)


def _overall(scores: Mapping[str, Any], *, season: object) -> Table:
    table = _table("pinball\nall steps", "pinball\nfirst", "pinball\nlast", "96%\nholds", "80%\nholds", "50%\nholds")
    for name, found in scores.items():
        if isinstance(found, Mapping) and "pinball" in found:
            about = f" ({_period(season)})" if name == "seasonal" and isinstance(season, int) else ""
            numbers = (_number(found.get(key), ".4f") for key in ("pinball", "pinball_first", "pinball_last"))
            table.add_row(NAMES.get(name, name) + about, *numbers, *_covered(found, "0.96", "0.8", "0.5"))
    return table


def _by_metric(scores: Mapping[str, Any]) -> Iterator[Table]:
    """Pinball loss of each metric, and the coverage of the model."""
    found = {name: one["by_metric"] for name, one in scores.items() if isinstance(one, Mapping) and "by_metric" in one}
    if not isinstance(found.get("model"), Mapping):
        return
    rivals = [name for name in found if name != "model"]
    yield row("", Text("pinball loss of each metric, in its own scale:"))
    table = _table("this\nmodel", *(NAMES.get(name, name).replace(" ", "\n", 1) for name in rivals), "80%\nholds")
    for metric, mine in found["model"].items():
        others = (_number(found[name].get(metric, {}).get("pinball"), ".4f") for name in rivals)
        table.add_row(metric, _number(mine.get("pinball"), ".4f"), *others, *_covered(mine, "0.8"))
    yield table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _covered(found: Mapping[str, Any], *intervals: str) -> Iterator[str]:
    coverage = found.get("coverage")
    for interval in intervals:
        yield _number(coverage.get(interval) if isinstance(coverage, Mapping) else None, ".0%")


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def _period(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
