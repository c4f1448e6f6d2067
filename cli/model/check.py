"""`model check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from cli.model.common import DIRECTORY_ARGUMENT
from cli.options import TIME, json_option, setting_option
from cli.rows import console, row, stage_row
from forecastd.clock import Clock, SystemClock
from forecastd.fleet.model_check import check_fleet_model
from forecastd.inference.model_check import check_model
from forecastd.inference.stages import StageResult
from forecastd.settings import Settings, load_settings
from models.bundle.manifest import Manifest
from models.registry import is_fleet_bundle


@click.command(name="check")
@DIRECTORY_ARGUMENT
@setting_option("--source", text="Candles for the test prediction.")
@setting_option("--features", text="The feature list.")
@click.option("--as-of", type=TIME, metavar="ISO", help="Predict as of this time (ISO 8601, UTC).")
@json_option()
@click.pass_obj
def command(
    shared: dict[str, Any], /, directory: Path | None, as_of: float | None, as_json: bool, **options: Any
) -> None:
    """Verify a bundle: hashes, schema, features, weights, canary, and a test prediction on recent candles.

    A fleet bundle is tested on simulated servers instead.
    """
    settings, clock = load_settings(model=directory, **shared, **options), SystemClock()
    stages: list[StageResult] = []
    report = stages.append if as_json else lambda stage: console().print(stage_row(stage))
    now = as_of or clock.now()
    manifest, next_command = _check_bundle(settings, clock, now, report)
    document = {"bundle": str(settings.model_path), "sha256": manifest.sha256, "synthetic": manifest.training.synthetic}
    if as_json:
        click.echo(json.dumps({**document, "ok": True, "stages": [vars(stage) for stage in stages]}))
        return
    console().print(row("result", Text(f"good; run it with\nforecastd {next_command} --model {settings.model_path}")))


def _check_bundle(
    settings: Settings, clock: Clock, now: float, report: Callable[[StageResult], None]
) -> tuple[Manifest, str]:
    """Check a bundle of either kind; returns its manifest and the command that runs it."""
    if is_fleet_bundle(settings.model_path):
        return check_fleet_model(settings, clock, now=now, report=report), "fleet serve"
    return check_model(settings, clock, now=now, report=report), "--once"
