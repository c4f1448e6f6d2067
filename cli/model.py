"""`model`: check and describe bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import SettingOption
from cli.quarantine import command as quarantine

if TYPE_CHECKING:
    from forecastd.clock import Clock
    from forecastd.settings import Settings
    from forecastd.stages import Stage
    from models.kinds import Made

DIRECTORY = click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")


@click.group(name="model")
def command() -> None:
    """Check and describe model bundles. Without DIR, the bundle of MODEL, or the embedded demo bundle."""


command.add_command(quarantine)


@command.command()
@DIRECTORY
@click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="Candles for the test prediction.  [DATA_SOURCE]"
)
@click.option(
    "--features",
    cls=SettingOption,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The feature list.  [FEATURES]",
)
@click.option("--as-of", metavar="ISO", help="Predict as at this moment (ISO 8601, UTC).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_obj
def check(shared: dict[str, Any], /, directory: Path | None, as_of: str | None, as_json: bool, **options: Any) -> None:
    """Verify a bundle: hashes, schema, features, weights, canary, and a test prediction on recent candles.

    A fleet's bundle is tried on made-up servers instead.
    """
    from rich.text import Text

    from cli.screen import console, row, stage_row
    from cli.times import reference_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings

    settings, clock = load_settings(model=directory, **shared, **options), SystemClock()
    stages: list[Stage] = []
    report = stages.append if as_json else lambda stage: console().print(stage_row(stage))
    now = reference_time(as_of) or clock.now()
    manifest, after = _checked(settings, clock, now, report)
    told = {"bundle": str(settings.model_path), "sha256": manifest.sha256, "synthetic": manifest.training.synthetic}
    if as_json:
        click.echo(json.dumps({**told, "ok": True, "stages": [vars(stage) for stage in stages]}))
        return
    console().print(row("result", Text(f"good; run it with\nforecastd {after} --model {settings.model_path}")))


def _checked(settings: Settings, clock: Clock, now: float, report: Callable[[Stage], None]) -> tuple[Made, str]:
    """The manifest of a good bundle, whichever it is, and the command that runs it."""
    from models.kinds import is_fleet

    if is_fleet(settings.model_path):
        from forecastd.fleet.checkup import check_fleet_model

        return check_fleet_model(settings, settings.model_path, clock, now=now, report=report), "fleet serve"
    from forecastd.checkup import check_model

    return check_model(settings, settings.model_path, clock, now=now, report=report), "--once"


@command.command()
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
@click.pass_obj
def show(shared: dict[str, Any], /, directory: Path | None, as_json: bool) -> None:
    """Describe a bundle: what it forecasts, from what, trained on what, and how well."""
    from cli.screen import console
    from forecastd.settings import load_settings
    from models.bundlefiles import read_content
    from models.kinds import read_made

    path = load_settings(model=directory, **shared).model_path
    manifest = read_made(path)
    if as_json:
        click.echo(read_content(path).decode(), nl=False)
        return
    from cli.manifest import described

    for line in described(manifest):
        console().print(line)
