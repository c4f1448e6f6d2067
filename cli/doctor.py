"""`doctor`: check everything that a worker needs, one finding per line."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.doctor_rows import print_finding
from cli.options import SettingOption
from forecastd.clock import SystemClock
from forecastd.doctor import Level, diagnose, worst_level
from forecastd.errors import ExitCode, NeedsHuman
from forecastd.settings import Settings, load_valid_settings, variable_sources
from forecastd.submission.topics import load_topics

PATH_TYPE = click.Path(path_type=Path)


@click.command(name="doctor")
@click.option("--network", "allora_network", cls=SettingOption, type=click.Choice(["local", "testnet", "mainnet"]),
              help="The network.  [ALLORA_NETWORK]")  # fmt: skip
@click.option("--topic-id", cls=SettingOption, type=click.IntRange(min=1), metavar="ID", help="The topic.  [TOPIC_ID]")
@click.option(
    "--topics", "topics_file", cls=SettingOption, type=PATH_TYPE, metavar="FILE", help="A topics.toml.  [TOPICS_FILE]"
)
@click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="The source of the candles.  [DATA_SOURCE]"
)
@click.option("--model", cls=SettingOption, type=PATH_TYPE, metavar="DIR", help="The model bundle.  [MODEL]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Check everything that a worker needs.

    Settings, wallet, endpoints, balance, topics, account, clock, data source, model, disk, ledger and service files; each
    problem with its fix. Signs, sends and registers nothing. The exit code is 5 when a check fails.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # warnings are findings here
    topics, problems = _topics(options | (ctx.obj or {}))
    report = (lambda _: None) if as_json else print_finding
    findings = diagnose(topics, SystemClock(), invalid_settings=problems, sources=variable_sources(), report=report)
    ok = worst_level(findings) is not Level.FAIL
    if as_json:
        click.echo(
            json.dumps(
                {"ok": ok, "worst": worst_level(findings), "findings": [asdict(finding) for finding in findings]}
            )
        )
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
