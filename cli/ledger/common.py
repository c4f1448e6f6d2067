"""What the `ledger` commands share: options, and the epochs of the ledger."""

from __future__ import annotations

from typing import Any

import click

from forecastd.ledger.export import LedgerEpoch, find_epochs
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
from forecastd.settings import load_settings

TOPIC_OPTION = click.option("--topic-id", type=click.IntRange(min=1), metavar="ID", help="Only epochs of this topic.")


def read_epochs(shared: dict[str, Any] | None, **filters: Any) -> list[LedgerEpoch]:
    """The epochs that match; empty, with a line on stderr, when there is no ledger yet."""
    settings = load_settings(**(shared or {}))
    try:
        with open_snapshot(settings.state_path / "ledger.sqlite") as ledger:
            return find_epochs(ledger, **filters)
    except LedgerNotFound as error:
        click.echo(str(error), err=True)
        return []
