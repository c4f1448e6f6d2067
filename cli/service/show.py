"""`service show`."""

from __future__ import annotations

from typing import Any

import click

from cli.service.common import (
    LAUNCH_OPTIONS,
    MANAGER_OPTIONS,
    make_draft,
    print_warnings,
    select_manager,
    with_options,
)


@click.command(name="show")
@with_options(MANAGER_OPTIONS, LAUNCH_OPTIONS)
@click.pass_obj
def command(shared: dict[str, Any] | None, /, **arguments: Any) -> None:
    """Print the service file that `install` writes."""
    draft = make_draft(shared, select_manager(arguments["manager"], own=arguments["own"]), **arguments)
    click.echo(draft.text, nl=False)
    print_warnings(draft.warnings)
