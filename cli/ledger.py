"""`ledger`: what was submitted, by this host's own record and against the chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.options import SettingOption

F = TypeVar("F", bound=Callable[..., Any])
STATES = ("signed", "dead", "included", "admitted", "passive", "evicted", "missed")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
TOPIC_OPTION = click.option("--topic-id", type=click.IntRange(min=1), metavar="ID", help="Only this topic's epochs.")
EXIT_DISAGREEMENT = 5


def network_option(command: F) -> F:
    """The option that says which chain is asked. (The topic is a filter here, not a setting.)"""
    networks = click.Choice(["local", "testnet", "mainnet"])
    return click.option(
        "--network", "allora_network", cls=SettingOption, type=networks, help="The network.  [ALLORA_NETWORK]"
    )(command)


@click.group(name="ledger")
def command() -> None:
    """What was signed and submitted: list, show, export, verify against the chain.

    Reading works beside a running worker.
    """


@command.command(name="list")
@TOPIC_OPTION
@click.option("--state", type=click.Choice(STATES), help="Only epochs in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=24, show_default=True, help="How many, the newest first.")
@JSON_OPTION
@click.pass_obj
def list_epochs(shared: dict[str, Any] | None, /, as_json: bool, **filters: Any) -> None:
    """The newest epochs."""
    from cli.ledger_rows import print_epochs

    epochs = _find_epochs(shared, **filters)
    if as_json:
        click.echo(json.dumps({"epochs": [epoch.as_row() for epoch in epochs]}))
    else:
        print_epochs(epochs)


@command.command()
@click.argument("nonce", type=click.IntRange(min=0))
@TOPIC_OPTION
@JSON_OPTION
@click.pass_obj
def show(shared: dict[str, Any] | None, /, nonce: int, as_json: bool, topic_id: int | None) -> None:
    """All of an epoch, with every signature made for it."""
    from cli.ledger_rows import print_epoch
    from forecastd.errors import NeedsHuman

    epochs = _find_epochs(shared, nonce=nonce, topic_id=topic_id)
    if not epochs:
        raise NeedsHuman(f"The ledger has no epoch {nonce}. `forecastd ledger list` shows what it has.")
    if as_json:
        click.echo(json.dumps({"epochs": [epoch.as_json() for epoch in epochs]}))
        return
    for epoch in epochs:
        print_epoch(epoch)


@command.command()
@TOPIC_OPTION
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True,
              help="JSON has every signature with its bytes, CSV the newest of each epoch.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="PATH", help="A file instead of stdout.")
@click.option("--force", is_flag=True, help="Replace PATH where it exists.")
@click.pass_obj
def export(
    shared: dict[str, Any] | None, /, form: Any, out: Path | None, force: bool, topic_id: int | None
) -> None:  # fmt: skip
    """All epochs as CSV or JSON."""
    from forecastd.submission.account import format_export, write_export

    epochs = _find_epochs(shared, topic_id=topic_id)
    text = format_export(epochs, form)
    if out is None:
        click.echo(text, nl=False)
        return
    write_export(text, out, force=force)
    click.echo(f"{len(epochs)} epochs written to {out}", err=True)


@command.command()
@network_option
@TOPIC_OPTION
@click.option("--limit", type=click.IntRange(min=1), help="Only so many epochs, the newest.")
@JSON_OPTION
@click.pass_context
def verify(ctx: click.Context, /, allora_network: str | None, as_json: bool, **filters: Any) -> None:
    """Compare every epoch with the chain.

    Each that claims to be in a block must be found there, each that claims a miss must not. Ends with 0 when all agree,
    5 when something does not, 6 when the chain cannot be asked.
    """
    from cli.ledger_rows import print_report, print_verdict, report_json
    from forecastd.clock import SystemClock
    from forecastd.ledger.snapshot import open_snapshot
    from forecastd.submission.connect import chain_id_for, open_endpoints
    from forecastd.submission.verify import verify_ledger as compare

    settings, clock = _settings(ctx.obj, allora_network), SystemClock()
    chain_id = chain_id_for(settings)
    with open_snapshot(settings.state / "ledger.sqlite") as ledger, open_endpoints(settings, clock, chain_id) as chain:
        report = compare(ledger, chain, on_verdict=(lambda _: None) if as_json else print_verdict, **filters)
    if as_json:
        click.echo(json.dumps(report_json(report)))
    else:
        print_report(report)
    ctx.exit(EXIT_DISAGREEMENT if report.disagreements else 0)


@command.command()
@network_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def trust(ctx: click.Context, /, allora_network: str | None, yes: bool) -> None:
    """Take the account as it is, after somebody else signed with its key.

    The sequences that this ledger did not sign with are told, and given up. Needs the worker to be stopped.
    """
    from forecastd.submission.account import format_ranges
    from forecastd.submission.account import trust_account as take

    with _unexplained_accounts(ctx.obj, allora_network) as (ledger, accounts):
        for account in accounts:
            click.echo(f"{account.wallet} on {account.chain_id}: next sequence {account.sequence}")
            click.echo(f"used by somebody else: {format_ranges(account.unknown)}")
            if not yes and not click.confirm("Is the other signer stopped, and are these to be given up?"):
                click.echo("Nothing was changed.")
                ctx.exit(EXIT_DISAGREEMENT)
            take(ledger, account)
            click.echo(f"Taken as it is; the ledger knows the account from sequence {account.sequence} on.")
        if not accounts:
            click.echo("Nobody else has signed; nothing was changed.")


def _unexplained_accounts(shared: dict[str, Any] | None, network: str | None) -> Any:
    """The ledger itself, held, with those of its accounts that somebody else signed for."""
    from forecastd.clock import SystemClock
    from forecastd.submission.account import open_unexplained_accounts

    return open_unexplained_accounts(_settings(shared, network), SystemClock())


def _find_epochs(shared: dict[str, Any] | None, **filters: Any) -> Any:
    """The epochs that fit; none where there is no ledger yet, which is told on stderr."""
    from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
    from forecastd.submission.account import find_epochs

    try:
        with open_snapshot(_settings(shared, None).state / "ledger.sqlite") as ledger:
            return find_epochs(ledger, **filters)
    except LedgerNotFound as error:
        click.echo(str(error), err=True)
        return []


def _settings(shared: dict[str, Any] | None, network: str | None) -> Any:
    from forecastd.settings import load_settings

    return load_settings(**(shared or {}), allora_network=network)
