"""`model`: check and describe bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.options import SettingOption
from cli.quarantine import command as quarantine

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
    """Verify a bundle: hashes, schema, features, weights, canary, and a test prediction on recent candles."""
    from rich.text import Text

    from cli.screen import console, row, stage_row
    from cli.times import reference_time
    from forecastd.checkup import check_model
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.stages import Stage

    settings, clock = load_settings(model=directory, **shared, **options), SystemClock()
    stages: list[Stage] = []
    report = stages.append if as_json else lambda stage: console().print(stage_row(stage))
    now = reference_time(as_of) or clock.now()
    manifest = check_model(settings, settings.model_path, clock, now=now, report=report)
    told = {"bundle": str(settings.model_path), "sha256": manifest.sha256, "synthetic": manifest.training.synthetic}
    if as_json:
        click.echo(json.dumps({**told, "ok": True, "stages": [vars(stage) for stage in stages]}))
        return
    console().print(row("result", Text(f"good; run it with\nforecastd --once --model {settings.model_path}")))


@command.command()
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
@click.pass_obj
def show(shared: dict[str, Any], /, directory: Path | None, as_json: bool) -> None:
    """Describe a bundle: what it forecasts, from what, trained on what, and how well."""
    from cli.screen import console
    from forecastd.settings import load_settings
    from models.bundle import read_manifest
    from models.manifest import to_json

    manifest = read_manifest(load_settings(model=directory, **shared).model_path)
    if as_json:
        click.echo(to_json(manifest).decode(), nl=False)
        return
    from cli.manifest import manifest_rows

    for line in manifest_rows(manifest):
        console().print(line)
