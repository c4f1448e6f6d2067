"""The `--once` cycle at the terminal: options in, one line a stage out, or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forecastd.clock import SystemClock, from_iso
from forecastd.cycle import Stage
from forecastd.logs import configure
from forecastd.outcome import Outcome
from forecastd.settings import Settings, load_settings
from forecastd.worker import run_once

LABEL, SECONDS = 10, 9
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
    reference = _reference(as_of)
    settings = load_settings(**options)
    configure(settings.logs, verbose=verbose, secrets=_secrets(settings))
    console = Console(highlight=False, soft_wrap=False)
    outcome = run_once(
        settings,
        SystemClock(),
        as_of=reference,
        dry_run=dry_run,
        register=register,
        report=(lambda _: None) if as_json else lambda stage: console.print(stage_row(stage)),
    )
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    else:
        console.print(outcome_row(outcome))
    return outcome.exit_code


def stage_row(stage: Stage) -> Table:
    """One stage as a row: name, what it found (wrapped under itself), seconds."""
    return _row(stage.name, Text(stage.text), f"{stage.seconds:.3f} s")


def outcome_row(outcome: Outcome) -> Table:
    """How it ended, in the same shape as the stages."""
    style = STYLES.get(outcome.exit_code, "bold red")
    lines = [Text(outcome.outcome.replace("_", " "), style=style)]
    if outcome.reason:
        lines.append(Text(f"{outcome.check}: {outcome.reason}" if outcome.check else outcome.reason))
    if outcome.height is not None:
        lines.append(Text(f"transaction {outcome.tx_hash}\nincluded in block {outcome.height}"))
    return _row("outcome", Text("\n").join(lines), f"{sum(outcome.stages.values()):.3f} s")


def _row(label: str, text: Text, seconds: str) -> Table:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(width=LABEL, no_wrap=True)
    row.add_column(ratio=1, overflow="fold")
    row.add_column(width=SECONDS, justify="right", no_wrap=True)
    row.add_row(label, text, seconds)
    return row


def _reference(as_of: str | None) -> float | None:
    try:
        return None if as_of is None else from_iso(as_of)
    except ValueError:
        raise click.BadParameter(
            f"{as_of!r} is not an ISO 8601 time such as 2019-10-17T09:00:00Z.", param_hint="--as-of"
        ) from None


def _secrets(settings: Settings) -> list[str]:
    given = [settings.tiingo_api_key, settings.mnemonic]
    return [secret.get_secret_value() for secret in given if secret is not None]
