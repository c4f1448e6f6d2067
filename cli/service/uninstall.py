"""`service uninstall`."""

from __future__ import annotations

from pathlib import Path

import click

from cli.service.common import (
    FILE_OPTIONS,
    MANAGER_OPTIONS,
    print_next_steps,
    select_manager,
    select_service,
    with_options,
)
from forecastd.service.draft import steps_after_removal
from forecastd.service.installed import file_path, uninstall
from forecastd.service.launch import ServiceManager


@click.command(name="uninstall")
@with_options(MANAGER_OPTIONS, FILE_OPTIONS)
def command(manager: ServiceManager | None, fleet: bool, own: bool, to: Path | None, force: bool) -> None:
    """Remove the service file that `install` wrote. State, logs and settings stay."""
    selected = select_manager(manager, own=own)
    path = file_path(selected, per_user=own, directory=to, service=select_service(fleet=fleet))
    remaining = uninstall(path, force=force)
    click.echo(f"Removed: {path}")
    click.echo(f"Kept: {', '.join(remaining) or 'state and logs, in the directories of .env'}")
    print_next_steps(steps_after_removal(selected, per_user=own))
