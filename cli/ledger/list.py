"""`ledger list`."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.ledger.common import TOPIC_OPTION, read_epochs
from cli.ledger.rows import print_epochs
from cli.options import json_option
from forecastd.ledger.ledger import SubmissionState

STATES = tuple(state.value for state in SubmissionState)


@click.command(name="list")
@TOPIC_OPTION
@click.option("--state", type=click.Choice(STATES), help="Only epochs in this state.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=24, show_default=True, help="Maximum number, newest first."
)
@json_option()
@click.pass_obj
def command(shared: dict[str, Any] | None, /, as_json: bool, **filters: Any) -> None:
    """List the newest epochs."""
    epochs = read_epochs(shared, **filters)
    if as_json:
        click.echo(json.dumps({"epochs": [epoch.as_row() for epoch in epochs]}))
    else:
        print_epochs(epochs)
