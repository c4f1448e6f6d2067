"""`ledger verify`."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.ledger.common import TOPIC_OPTION
from cli.ledger.rows import print_report, print_verdict, report_json
from cli.options import json_option, setting_option
from forecastd.clock import SystemClock
from forecastd.errors import ExitCode
from forecastd.ledger.snapshot import open_snapshot
from forecastd.settings import load_settings
from forecastd.submission.connect import chain_id_for, open_endpoints
from forecastd.submission.verify import verify_ledger


@click.command(name="verify")
@setting_option("--network")
@TOPIC_OPTION
@click.option("--limit", type=click.IntRange(min=1), help="Verify only this many epochs, the newest.")
@json_option()
@click.pass_context
def command(ctx: click.Context, /, allora_network: str | None, as_json: bool, **filters: Any) -> None:
    """Compare every epoch with the chain.

    An epoch that the ledger has as included must be on the chain, a missed one must not. The exit code is 0 when all agree,
    5 when something disagrees, and 6 when no endpoint answers.
    """
    settings, clock = load_settings(**(ctx.obj or {}), allora_network=allora_network), SystemClock()
    path, chain_id = settings.state_path / "ledger.sqlite", chain_id_for(settings)
    with open_snapshot(path) as ledger, open_endpoints(settings, clock, chain_id) as chain:
        on_verdict = (lambda _: None) if as_json else print_verdict
        report = verify_ledger(ledger, chain, on_verdict=on_verdict, **filters)
    if as_json:
        click.echo(json.dumps(report_json(report)))
    else:
        print_report(report)
    ctx.exit(ExitCode.NEEDS_HUMAN if report.disagreements else ExitCode.SUCCESS)
