"""`fleet import`: a window that another program has pickled, taken over; nothing of the file is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import SettingOption

if TYPE_CHECKING:
    from forecastd.fleet.history.window_import import ImportReport

EPILOG = """\b
Exit codes:
  0  taken over, or with --dry-run: it could be
  2  wrong usage
  5  the file is refused, or has no row that can be used
  6  a fleet is running here, or the disk does not take it
"""
MAX_LISTED = 5  # reasons, names and servers that are told one by one


def parse_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The values of an option `A=B` that may be given again."""
    mapping = {}
    for text in values:
        left, _, right = text.partition("=")
        if not left or not right:
            raise click.BadParameter(f"{text!r} is not of the form {param.metavar}.", ctx, param)
        mapping[left] = right
    return mapping


def parse_metric_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--map`."""
    from forecastd.fleet.contract import METRIC_NAMES

    names = parse_pairs(ctx, param, values)
    for name in names.values():
        if name not in METRIC_NAMES:
            raise click.BadParameter(f"{name} is no metric; they are {', '.join(METRIC_NAMES)}.", ctx, param)
    return names


def parse_metric_units(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--unit`."""
    from forecastd.fleet.contract import FeedError, unit_factor

    units = parse_pairs(ctx, param, values)
    try:
        for metric, unit in units.items():
            unit_factor(metric, unit)
    except FeedError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None
    return units


@click.command(name="import", epilog=EPILOG)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read and judge it, and change nothing.")
@click.option("--map", "names", multiple=True, callback=parse_metric_names, metavar="OLD=NEW",
              help="The file's name of a metric, and ours; may be repeated.")  # fmt: skip
@click.option("--unit", "units", multiple=True, callback=parse_metric_units, metavar="METRIC=UNIT",
              help="The unit of a metric in the file where it is not ours, such as cpu_percent=ratio.")  # fmt: skip
@click.option("--state-dir", cls=SettingOption, type=click.Path(path_type=Path), metavar="DIR",
              help="Where state is kept.  [STATE_DIR]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_obj
def command(
    shared: dict[str, Any] | None, /, file: Path, state_dir: Path | None, as_json: bool, **options: Any
) -> None:
    """Take over a window that another program has pickled.

    FILE holds lists, dictionaries, numbers, texts and dates; anything else in it is refused by its name and never run.
    Every row is judged as one that is sent. What is there already stays. A fleet that runs here must be stopped first.
    """
    report = _import_window({**(shared or {}), **({"state_dir": state_dir} if state_dir else {})}, file, **options)
    if as_json:
        click.echo(json.dumps({**report.as_json(), "file": str(file), "dry_run": options["dry_run"]}))
        return
    _print_report(report, dry_run=options["dry_run"])


def _import_window(
    options: dict[str, Any], file: Path, *, dry_run: bool, names: dict[str, str], units: dict[str, str]
) -> ImportReport:
    from contextlib import ExitStack

    from forecastd.clock import SystemClock
    from forecastd.fleet.history.window_import import import_pickle
    from forecastd.fleet.window.store import TickStore
    from forecastd.runtime.file_lock import LOCK_NAME, FileLock
    from forecastd.settings import load_settings

    settings, clock = load_settings(**options), SystemClock()
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(FileLock(settings.fleet_state_path / LOCK_NAME, clock, timeout=0.0))
        store = TickStore(
            settings.fleet_state_path / "window.sqlite", step=settings.fleet_step, hours=settings.fleet_history_hours,
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
    from rich.text import Text

    from cli.rows import console, row
    from forecastd.clock import to_iso

    lines = [("found", f"{report.rows} rows")]
    period = "" if report.first is None or report.last is None else f", {to_iso(report.first)} to {to_iso(report.last)}"
    details = (
        f" of {len(report.servers)} servers ({_abbreviate(list(report.servers))}){period}" if report.imported else ""
    )
    lines.append(("would take" if dry_run else "taken", f"{report.imported} rows{details}"))
    if report.duplicates:
        lines.append(("known", f"{report.duplicates} rows were there already, or more than once in the file"))
    for code, count in report.refusals.counts.most_common():
        reason = next((refusal.reason for refusal in report.refusals.first if refusal.code == code), code)
        lines.append(("refused", f"{count} rows: {reason}"))
    if report.unknown_metrics:
        names = [name for name, _ in report.unknown_metrics.most_common()]
        lines.append(
            ("left out", f"numbers that are no metric of ours: {_abbreviate(names)}. --map OLD=NEW names them.")
        )
    if report.times_without_offset:
        lines.append(("times", f"{report.times_without_offset} had no offset and were taken as UTC"))
    for label, text in lines:
        console().print(row(label, Text(text)))


def _abbreviate(names: list[str]) -> str:
    suffix = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + suffix
