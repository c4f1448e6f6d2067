"""The `--once` cycle at the terminal: options in, one line a stage out, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from cli.screen import console, row, stage_row
from cli.times import reference_time
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError
from forecastd.logs import configure
from forecastd.outcome import Outcome, ended_by
from forecastd.settings import Settings, load_settings
from forecastd.worker import run_once

STYLES = {0: "bold green", 3: "bold yellow", 4: "bold yellow"}


def run_cycle_command(
    *,
    as_json: bool,
    verbose: bool,
    as_of: str | None,
    dry_run: bool,
    register: bool,
    **options: str | int | Path | None,
) -> int:
    """Run one cycle as the options say, print it, and give its exit code."""
    reference = reference_time(as_of)
    screen = console()
    try:
        settings = load_settings(**options)
    except ForecastdError as error:
        outcome = ended_by(error, Outcome("failed"))
    else:
        configure(settings.logs, verbose=verbose, secrets=_secrets(settings))
        outcome = run_once(
            settings,
            SystemClock(),
            as_of=reference,
            dry_run=dry_run,
            register=register,
            report=(lambda _: None) if as_json else lambda stage: screen.print(stage_row(stage)),
        )
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    else:
        for line in outcome_rows(outcome):
            screen.print(line)
    return outcome.exit_code


def outcome_rows(outcome: Outcome) -> Iterator[Table]:
    """How it ended, in the same shape as the stages."""
    style = STYLES.get(outcome.exit_code, "bold red")
    text = Text(outcome.outcome.replace("_", " "), style=style)
    if outcome.height is not None:
        text.append(f" in block {outcome.height}")
    if outcome.reason:
        text.append(f"\n{outcome.check}: {outcome.reason}" if outcome.check else f"\n{outcome.reason}", style="default")
    yield row("outcome", text, f"{sum(outcome.stages.values()):.3f} s")
    if outcome.tx_hash is not None:
        yield row("tx", Text(outcome.tx_hash))


def _secrets(settings: Settings) -> list[str]:
    given = [settings.tiingo_api_key, settings.mnemonic]
    return [secret.get_secret_value() for secret in given if secret is not None]
