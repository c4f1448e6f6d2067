"""`fleet import`: a window that another program has pickled, taken over; nothing of the file is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import SettingOption

if TYPE_CHECKING:
    from forecastd.fleet.takeover import TakenOver

EPILOG = """\b
Exit codes:
  0  taken over, or with --dry-run: it could be
  2  wrong usage
  5  the file is refused, or has no row that can be used
  6  a fleet is running here, or the disk does not take it
"""
TOLD = 5  # reasons, names and servers that are told one by one


def pairs(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The values of an option `A=B` that may be given again."""
    found = {}
    for text in given:
        left, _, right = text.partition("=")
        if not left or not right:
            raise click.BadParameter(f"{text!r} is not of the form {param.metavar}.", ctx, param)
        found[left] = right
    return found


def metric_names(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--map`."""
    from forecastd.fleet.contract import NAMES

    found = pairs(ctx, param, given)
    for name in found.values():
        if name not in NAMES:
            raise click.BadParameter(f"{name} is no metric; they are {', '.join(NAMES)}.", ctx, param)
    return found


def metric_units(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--unit`."""
    from forecastd.fleet.contract import FeedError, factor

    found = pairs(ctx, param, given)
    try:
        for metric, unit in found.items():
            factor(metric, unit)
    except FeedError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None
    return found


@click.command(name="import", epilog=EPILOG)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read and judge it, and change nothing.")
@click.option("--map", "names", multiple=True, callback=metric_names, metavar="OLD=NEW",
              help="The file's name of a metric, and ours; may be repeated.")  # fmt: skip
@click.option("--unit", "units", multiple=True, callback=metric_units, metavar="METRIC=UNIT",
              help="The unit of a metric in the file where it is not ours, such as cpu_percent=ratio.")  # fmt: skip
@click.option("--state-dir", cls=SettingOption, type=click.Path(path_type=Path), metavar="DIR",
              help="Where state is kept.  [STATE_DIR]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_obj
def command(shared: dict[str, Any] | None, /, file: Path, state_dir: Path | None, as_json: bool, **asked: Any) -> None:
    """Take over a window that another program has pickled.

    FILE holds lists, dictionaries, numbers, texts and dates; anything else in it is refused by its name and never run.
    Every row is judged as one that is sent. What is there already stays. A fleet that runs here must be stopped first.
    """
    found = _take_over({**(shared or {}), **({"state_dir": state_dir} if state_dir else {})}, file, **asked)
    if as_json:
        click.echo(json.dumps({**found.as_json(), "file": str(file), "dry_run": asked["dry_run"]}))
        return
    _show(found, dry_run=asked["dry_run"])


def _take_over(
    options: dict[str, Any], file: Path, *, dry_run: bool, names: dict[str, str], units: dict[str, str]
) -> TakenOver:
    from contextlib import ExitStack

    from forecastd.clock import SystemClock
    from forecastd.fleet.hold import LOCK, Hold
    from forecastd.fleet.store import TickStore
    from forecastd.fleet.takeover import take_over
    from forecastd.settings import load_settings

    settings, clock = load_settings(**options), SystemClock()
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(Hold(settings.fleet_state / LOCK, clock, wait=0.0))
        store = TickStore(
            settings.fleet_state / "window.sqlite", step=settings.fleet_step, hours=settings.fleet_history_hours,
            megabytes=settings.fleet_history_mb, read_only=dry_run,
        )  # fmt: skip
        stack.enter_context(store)
        return take_over(
            file, store, now=clock.now(), max_skew=settings.fleet_max_skew, names=names, units=units, dry_run=dry_run
        )


def _show(found: TakenOver, *, dry_run: bool) -> None:
    from rich.text import Text

    from cli.screen import console, row
    from forecastd.clock import iso

    lines = [("found", f"{found.found} rows")]
    span = "" if found.first is None or found.last is None else f", {iso(found.first)} to {iso(found.last)}"
    of = f" of {len(found.servers)} servers ({_some(list(found.servers))}){span}" if found.taken else ""
    lines.append(("would take" if dry_run else "taken", f"{found.taken} rows{of}"))
    if found.known:
        lines.append(("known", f"{found.known} rows were there already, or more than once in the file"))
    for code, count in found.refusals.counts.most_common():
        reason = next((one.reason for one in found.refusals.first if one.code == code), code)
        lines.append(("refused", f"{count} rows: {reason}"))
    if found.other_names:
        names = [name for name, _ in found.other_names.most_common()]
        lines.append(("left out", f"numbers that are no metric of ours: {_some(names)}. --map OLD=NEW names them."))
    if found.naive:
        lines.append(("times", f"{found.naive} had no offset and were taken as UTC"))
    for label, text in lines:
        console().print(row(label, Text(text)))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more
