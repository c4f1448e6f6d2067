"""What the `ledger` commands share: options, and the epochs of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.options import SettingOption
from forecastd.ledger.export import LedgerEpoch, find_epochs
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
from forecastd.settings import load_settings

F = TypeVar("F", bound=Callable[..., Any])
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
TOPIC_OPTION = click.option("--topic-id", type=click.IntRange(min=1), metavar="ID", help="Only epochs of this topic.")


def network_option(command: F) -> F:
    """The option for the chain to query. (The topic is a filter here, not a setting.)"""
    networks = click.Choice(["local", "testnet", "mainnet"])
    return click.option(
        "--network", "allora_network", cls=SettingOption, type=networks, help="The network.  [ALLORA_NETWORK]"
    )(command)


def read_epochs(shared: dict[str, Any] | None, **filters: Any) -> list[LedgerEpoch]:
    """The epochs that match; empty, with a line on stderr, when there is no ledger yet."""
    settings = load_settings(**(shared or {}))
    try:
        with open_snapshot(settings.state_path / "ledger.sqlite") as ledger:
            return find_epochs(ledger, **filters)
    except LedgerNotFound as error:
        click.echo(str(error), err=True)
        return []
