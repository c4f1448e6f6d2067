"""`service`: install the daemon or the fleet under systemd or supervisord."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "install": ("cli.service.install", "Write the service file and print the next steps."),
    "show": ("cli.service.show", "Print the service file that `install` writes."),
    "uninstall": ("cli.service.uninstall", "Remove the service file that `install` wrote."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="service")
def command() -> None:
    """Install the daemon or the fleet as a service under systemd or supervisord."""
