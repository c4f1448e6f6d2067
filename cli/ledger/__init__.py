"""`ledger`: what was submitted, by the ledger of this STATE_DIR and by the chain."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "export": ("cli.ledger.export", "Export all epochs as CSV or JSON."),
    "list": ("cli.ledger.list", "List the newest epochs."),
    "show": ("cli.ledger.show", "Show an epoch with all its signatures."),
    "trust": ("cli.ledger.trust", "Accept the account after another signer used its key."),
    "verify": ("cli.ledger.verify", "Compare every epoch with the chain."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="ledger")
def command() -> None:
    """List, show, export and verify what was signed and submitted.

    Reading works while a worker runs.
    """
