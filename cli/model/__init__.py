"""`model`: check and describe bundles, and manage the quarantine."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "check": ("cli.model.check", "Verify a bundle and run a test prediction."),
    "quarantine": ("cli.model.quarantine", "List the bundles in quarantine, or release them."),
    "show": ("cli.model.show", "Describe a bundle: target, inputs, training data and scores."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="model")
def command() -> None:
    """Check and describe model bundles. Without DIR: the bundle of MODEL, or the embedded demo bundle."""
