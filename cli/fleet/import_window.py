"""`fleet import`: import the pickled window of another program. No code of the file is executed."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from cli.options import SettingOption
from cli.rows import console, row
from forecastd.clock import SystemClock, to_iso
from forecastd.fleet.contract import METRIC_NAMES, FeedError, unit_factor
from forecastd.fleet.history.window_import import ImportReport, import_pickle
from forecastd.fleet.window.store import FILE_NAME, LOCK_NAME, TickStore
from forecastd.runtime.locks import FileLock
from forecastd.settings import load_settings

EPILOG = """\b
Exit codes:
  0  imported, or with --dry-run: could be imported
  2  wrong usage
  5  the file is refused, or has no usable row
  6  a fleet is running here, or the disk cannot be written
"""
MAX_LISTED = 5  # names and servers that are listed individually


def parse_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The values of a repeatable option `A=B`."""
    mapping = {}
    for text in values:
        left, _, right = text.partition("=")
        if not left or not right:
            raise click.BadParameter(f"{text!r} is not of the form {param.metavar}.", ctx, param)
        mapping[left] = right
    return mapping


def parse_metric_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--map`."""
    names = parse_pairs(ctx, param, values)
    for name in names.values():
        if name not in METRIC_NAMES:
            raise click.BadParameter(f"{name} is not a metric. Use one of: {', '.join(METRIC_NAMES)}.", ctx, param)
    return names


def parse_metric_units(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--unit`."""
    units = parse_pairs(ctx, param, values)
    try:
        for metric, unit in units.items():
            unit_factor(metric, unit)
    except FeedError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None
    return units


@click.command(name="import", epilog=EPILOG)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read and check the file, but change nothing.")
@click.option("--map", "names", multiple=True, callback=parse_metric_names, metavar="OLD=NEW",
              help="The name of a metric in the file, and its name here; repeatable.")  # fmt: skip
@click.option("--unit", "units", multiple=True, callback=parse_metric_units, metavar="METRIC=UNIT",
              help="The unit of a metric in the file if it differs: cpu_percent=ratio; repeatable.")  # fmt: skip
@click.option("--state-dir", cls=SettingOption, type=click.Path(path_type=Path), metavar="DIR",
              help="The state directory.  [STATE_DIR]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
@click.pass_obj
def command(
    shared: dict[str, Any] | None, /, file: Path, state_dir: Path | None, as_json: bool, **options: Any
) -> None:
    """Import the pickled window of another program.

    FILE may contain lists, dictionaries, numbers, texts and dates; any other class in it is refused and never executed.
    Every row is checked like a row of a feed. Existing rows stay. Stop a fleet that is running here first.
    """
    report = _import_window({**(shared or {}), **({"state_dir": state_dir} if state_dir else {})}, file, **options)
    if as_json:
        click.echo(json.dumps({**report.as_json(), "file": str(file), "dry_run": options["dry_run"]}))
        return
    _print_report(report, dry_run=options["dry_run"])


def _import_window(
    options: dict[str, Any], file: Path, *, dry_run: bool, names: dict[str, str], units: dict[str, str]
) -> ImportReport:
    settings, clock = load_settings(**options), SystemClock()
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(FileLock(settings.fleet_state_path / LOCK_NAME, clock, timeout=0.0))
        store = TickStore(
            settings.fleet_state_path / FILE_NAME, step=settings.fleet_step, hours=settings.fleet_history_hours,
            megabytes=settings.fleet_history_mb, read_only=dry_run,
        )  # fmt: skip
        stack.enter_context(store)
        return import_pickle(
            file,
            store,
            now=clock.now(),
            max_skew=settings.fleet_max_clock_skew,
            names=names,
            units=units,
            dry_run=dry_run,
        )


def _print_report(report: ImportReport, *, dry_run: bool) -> None:
    lines = [("found", _count_rows(report.rows))]
    period = "" if report.first is None or report.last is None else f", {to_iso(report.first)} to {to_iso(report.last)}"
    servers = f"{len(report.servers)} server" if len(report.servers) == 1 else f"{len(report.servers)} servers"
    details = f" of {servers} ({_abbreviate(list(report.servers))}){period}" if report.imported else ""
    lines.append(("importable" if dry_run else "imported", f"{_count_rows(report.imported)}{details}"))
    if report.duplicates:
        lines.append(("duplicates", f"{_count_rows(report.duplicates)} already in the window, or repeated in the file"))
    for code, count in report.refusals.counts.most_common():
        reason = next((refusal.reason for refusal in report.refusals.first if refusal.code == code), code)
        lines.append(("refused", f"{_count_rows(count)}: {reason}"))
    if report.unknown_metrics:
        names = [name for name, _ in report.unknown_metrics.most_common()]
        lines.append(("ignored", f"unknown metrics: {_abbreviate(names)}. Map them with --map OLD=NEW."))
    if report.times_without_offset:
        lines.append(("times", f"{report.times_without_offset} without an offset were read as UTC"))
    for label, text in lines:
        console().print(row(label, Text(text)))


def _count_rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _abbreviate(names: list[str]) -> str:
    suffix = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + suffix
