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
    from forecastd.inference.stages import StageResult
    from forecastd.settings import Settings
    from models.registry import TrainedManifest

DIRECTORY_ARGUMENT = click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")


@click.group(name="model")
def command() -> None:
    """Check and describe model bundles. Without DIR, the bundle of MODEL, or the embedded demo bundle."""


command.add_command(quarantine)


@command.command()
@DIRECTORY_ARGUMENT
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

    from cli.rows import console, row, stage_row
    from cli.times import parse_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings

    settings, clock = load_settings(model=directory, **shared, **options), SystemClock()
    stages: list[StageResult] = []
    report = stages.append if as_json else lambda stage: console().print(stage_row(stage))
    now = parse_time(as_of) or clock.now()
    manifest, next_command = _check_bundle(settings, clock, now, report)
    document = {"bundle": str(settings.model_path), "sha256": manifest.sha256, "synthetic": manifest.training.synthetic}
    if as_json:
        click.echo(json.dumps({**document, "ok": True, "stages": [vars(stage) for stage in stages]}))
        return
    console().print(row("result", Text(f"good; run it with\nforecastd {next_command} --model {settings.model_path}")))


def _check_bundle(
    settings: Settings, clock: Clock, now: float, report: Callable[[StageResult], None]
) -> tuple[TrainedManifest, str]:
    """The manifest of a good bundle, whichever it is, and the command that runs it."""
    from models.registry import is_fleet_bundle

    if is_fleet_bundle(settings.model_path):
        from forecastd.fleet.model_check import check_fleet_model

        return check_fleet_model(settings, settings.model_path, clock, now=now, report=report), "fleet serve"
    from forecastd.inference.model_check import check_model

    return check_model(settings, settings.model_path, clock, now=now, report=report), "--once"


@command.command()
@DIRECTORY_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
@click.pass_obj
def show(shared: dict[str, Any], /, directory: Path | None, as_json: bool) -> None:
    """Describe a bundle: what it forecasts, from what, trained on what, and how well."""
    from cli.rows import console
    from forecastd.settings import load_settings
    from models.bundle.files import read_manifest_bytes
    from models.registry import read_trained_manifest

    path = load_settings(model=directory, **shared).model_path
    manifest = read_trained_manifest(path)
    if as_json:
        click.echo(read_manifest_bytes(path).decode(), nl=False)
        return
    from cli.manifest import manifest_tables

    for line in manifest_tables(manifest):
        console().print(line)
