"""`service install`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.service.common import (
    FILE_OPTIONS,
    LAUNCH_OPTIONS,
    MANAGER_OPTIONS,
    make_draft,
    print_next_steps,
    print_warnings,
    select_manager,
    select_service,
    with_options,
)
from forecastd.service.installed import file_path, install


@click.command(name="install")
@with_options(MANAGER_OPTIONS, LAUNCH_OPTIONS, FILE_OPTIONS)
@click.pass_obj
def command(shared: dict[str, Any] | None, /, to: Path | None, force: bool, **arguments: Any) -> None:
    """Write the service file and print the next steps."""
    manager, own = select_manager(arguments["manager"], own=arguments["own"]), arguments["own"]
    service = select_service(fleet=arguments["fleet"])
    path = file_path(manager, per_user=own, directory=to and to.absolute(), service=service)
    draft = make_draft(shared, manager, **arguments)
    install(path, draft.text, force=force)
    click.echo(f"Written: {path}")
    print_warnings(draft.warnings)
    print_next_steps(draft.steps)
