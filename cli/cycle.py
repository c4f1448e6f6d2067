"""`--once`: run one cycle of each topic, and print one row per stage or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from cli.rows import console, row, stage_row
from forecastd.clock import SystemClock
from forecastd.errors import ExitCode, ForecastdError
from forecastd.ledger.outcome import Outcome, outcome_from_error
from forecastd.logs import configure
from forecastd.settings import load_settings
from forecastd.submission.topics import load_topics
from forecastd.submission.worker import run_once

_STYLES = {  # of an outcome, by its exit code; the worst one first
    ExitCode.NEEDS_HUMAN: "bold red",
    ExitCode.TEMPORARY: "bold red",
    ExitCode.REFUSED: "bold yellow",
    ExitCode.NOTHING_TO_DO: "bold yellow",
    ExitCode.SUCCESS: "bold green",
}


def run_cycle_command(
    *,
    as_json: bool,
    verbose: bool,
    as_of: float | None,
    dry_run: bool,
    register: bool,
    until_closed: bool,
    **options: str | int | Path | None,
) -> int:
    """Run one cycle of each topic with these options and print it. Returns the worst exit code."""
    screen = console()
    try:
        settings = load_settings(**options)
        topics = [settings] if settings.topic.file is None else load_topics(settings.topic.file, settings)
    except ForecastdError as error:
        outcomes = [outcome_from_error(error, Outcome("failed"))]
    else:
        secrets = [secret for topic in topics for secret in topic.secret_values]
        configure(settings.log_path, verbose=verbose, json=settings.files.log_format == "json", secrets=secrets)
        outcomes = run_once(
            topics,
            SystemClock(),
            as_of=as_of,
            dry_run=dry_run,
            register=register,
            retry_until_closed=until_closed,
            on_stage_end=(lambda _: None) if as_json else lambda stage: screen.print(stage_row(stage)),
        )
    if as_json:
        documents = [outcome.as_json() for outcome in outcomes]
        several = {"topics": documents, "exit_code": _worst_exit_code(outcomes)}
        click.echo(json.dumps(documents[0] if len(documents) == 1 else several))
    else:
        for line in (line for outcome in outcomes for line in outcome_rows(outcome)):
            screen.print(line)
    return _worst_exit_code(outcomes)


def _worst_exit_code(outcomes: list[Outcome]) -> ExitCode:
    """The exit code of several outcomes."""
    return min((outcome.exit_code for outcome in outcomes), key=list(_STYLES).index)


def outcome_rows(outcome: Outcome) -> Iterator[Table]:
    """The outcome in the same form as the stages."""
    text = Text(outcome.outcome.replace("_", " "), style=_STYLES[outcome.exit_code])
    if outcome.height is not None:
        text.append(f" in block {outcome.height}")
    if outcome.reason:
        text.append(f"\n{outcome.check}: {outcome.reason}" if outcome.check else f"\n{outcome.reason}", style="default")
    yield row("outcome", text, f"{sum(outcome.stages.values()):.3f} s")
    if outcome.tx_hash is not None:
        yield row("tx", Text(outcome.tx_hash))
