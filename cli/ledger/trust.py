"""`ledger trust`."""

from __future__ import annotations

import click

from cli.options import setting_option
from forecastd.clock import SystemClock
from forecastd.errors import ExitCode
from forecastd.settings import load_settings
from forecastd.submission.account import format_ranges, open_unexplained_accounts, trust_account


@click.command(name="trust")
@setting_option("--network")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_context
def command(ctx: click.Context, /, allora_network: str | None, yes: bool) -> None:
    """Accept the account as it is, after another signer used its key.

    Prints the sequences that this ledger did not sign with and stops checking them. Stop the worker first.
    """
    settings = load_settings(**(ctx.obj or {}), allora_network=allora_network)
    with open_unexplained_accounts(settings, SystemClock()) as (ledger, accounts):
        for account in accounts:
            click.echo(f"{account.wallet} on {account.chain_id}: next sequence {account.sequence}")
            click.echo(f"used by another signer: {format_ranges(account.unexplained)}")
            if not yes and not click.confirm("Is the other signer stopped, and do you accept these sequences?"):
                click.echo("Nothing was changed.")
                ctx.exit(ExitCode.NEEDS_HUMAN)
            trust_account(ledger, account)
            click.echo(f"Accepted. The ledger tracks this account from sequence {account.sequence}.")
        if not accounts:
            click.echo("No other signer has used an account; nothing was changed.")
