"""`doctor`: check everything that a worker needs, one finding per line."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from cli.options import json_option, setting_option
from cli.rows import console
from forecastd.clock import SystemClock
from forecastd.doctor import Finding, Level, diagnose, worst_level
from forecastd.errors import ExitCode, NeedsHuman
from forecastd.settings import Settings, load_valid_settings, variable_sources
from forecastd.submission.topics import load_topics

LEVEL_STYLES = {Level.OK: "green", Level.WARN: "bold yellow", Level.FAIL: "bold red", Level.SKIP: "dim"}


@click.command(name="doctor")
@setting_option("--network")
@setting_option("--topic-id")
@setting_option("--topics")
@setting_option("--source")
@setting_option("--model")
@json_option()
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Check everything that a worker needs.

    Settings, wallet, endpoints, balance, topics, account, clock, data source, model, disk, ledger and service files; each
    problem with its fix. Signs, sends and registers nothing. The exit code is 5 when a check fails.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # warnings are findings here
    topics, problems = _topics(options | (ctx.obj or {}))
    report = (lambda _: None) if as_json else _print_finding
    findings = diagnose(topics, SystemClock(), invalid_settings=problems, sources=variable_sources(), report=report)
    ok = worst_level(findings) is not Level.FAIL
    if as_json:
        rows = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"ok": ok, "worst": worst_level(findings), "findings": rows}))
    ctx.exit(ExitCode.SUCCESS if ok else ExitCode.NEEDS_HUMAN)


def _topics(options: dict[str, Any]) -> tuple[list[Settings], dict[str, str]]:
    """The settings of each topic, and the invalid settings with their problems; an invalid topics.toml is one of these."""
    settings, problems = load_valid_settings(**options)
    if settings.topic.file is None:
        return [settings], problems
    try:
        return load_topics(settings.topic.file, settings), problems
    except NeedsHuman as error:
        return [settings], {**problems, "TOPICS_FILE": str(error)}


def _print_finding(finding: Finding) -> None:
    """Print the level, the check and the finding; the fix on a separate line."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=4, no_wrap=True)
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    text = Text(finding.message)
    if finding.fix:
        text.append(f"\n{finding.fix}", style="bold")
    table.add_row(Text(finding.level, style=LEVEL_STYLES[finding.level]), finding.check, text)
    console().print(table)
