"""`ledger show`."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.ledger.common import TOPIC_OPTION, read_epochs
from cli.ledger.rows import print_epoch
from cli.options import json_option
from forecastd.errors import NeedsHuman


@click.command(name="show")
@click.argument("nonce", type=click.IntRange(min=0))
@TOPIC_OPTION
@json_option()
@click.pass_obj
def command(shared: dict[str, Any] | None, /, nonce: int, as_json: bool, topic_id: int | None) -> None:
    """Show an epoch with all its signatures."""
    epochs = read_epochs(shared, nonce=nonce, topic_id=topic_id)
    if not epochs:
        raise NeedsHuman(f"The ledger has no epoch {nonce}. List its epochs with `forecastd ledger list`.")
    if as_json:
        click.echo(json.dumps({"epochs": [epoch.as_json() for epoch in epochs]}))
        return
    for epoch in epochs:
        print_epoch(epoch)
