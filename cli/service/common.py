"""What the `service` commands share: options, and the draft of the service file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from forecastd.service.draft import ServiceDraft, draft_service
from forecastd.service.installed import default_manager
from forecastd.service.launch import DAEMON_SERVICE, FLEET_SERVICE, ServiceKind, ServiceManager, ServiceRequest
from forecastd.settings import load_settings, variable_sources

F = TypeVar("F", bound=Callable[..., Any])
MANAGER_OPTIONS = (
    click.option("--fleet", is_flag=True, help="The service of the fleet instead of the daemon."),
    click.option("--manager", type=click.Choice(["systemd", "supervisord"]), help="Default: systemd if it runs here."),
    click.option("--user", "own", is_flag=True, help="A user unit, without root (systemd)."),
)
LAUNCH_OPTIONS = (
    click.option("--directory", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
                 help="The directory of .env and of relative paths. Default: the current one."),
    click.option("--python", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
                 help="The interpreter. Default: the one that runs this command."),
    click.option("--run-as", metavar="NAME", help="The account. Default for root: the directory's owner, or forecastd."),
    click.option("--credential", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="A systemd credential: the file with the wallet's mnemonic, or with the fleet's API keys."),
)  # fmt: skip
FILE_OPTIONS = (
    click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="The directory of the service file. Default: where the manager looks."),
    click.option("--force", is_flag=True, help="Also replace or remove a file that was written or changed by hand."),
)  # fmt: skip


def with_options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    """Add groups of options, in the order in which `--help` lists them."""

    def decorate(function: F) -> F:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


def select_manager(name: ServiceManager | None, *, own: bool) -> ServiceManager:
    """The service manager of the options."""
    manager: ServiceManager = name or ("systemd" if own else default_manager())
    if own and manager != "systemd":
        raise click.UsageError("supervisord has no user units: omit --user and choose a directory with --to DIR.")
    return manager


def select_service(*, fleet: bool) -> ServiceKind:
    """The service of the options."""
    return FLEET_SERVICE if fleet else DAEMON_SERVICE


def make_draft(shared: dict[str, Any] | None, manager: ServiceManager, /, **arguments: Any) -> ServiceDraft:
    """The service file for these options, with warnings and next steps."""
    service = select_service(fleet=arguments["fleet"])
    if arguments["credential"] and manager != "systemd":
        raise click.UsageError(f"supervisord has no credentials: set {service.setting} in .env.")
    if arguments["own"] and (arguments["run_as"] or os.getuid() == 0):
        raise click.UsageError("--user installs a service that runs as you: omit --run-as, and do not use it as root.")
    working_directory = Path.cwd()
    paths = {
        name: working_directory / arguments[name] for name in ("directory", "python", "credential") if arguments[name]
    }
    directory = paths.pop("directory", working_directory)
    os.chdir(directory)
    options = {name: working_directory / value for name, value in (shared or {}).items() if value}
    origins = variable_sources() | {name.upper(): "an option" for name in options}
    request = ServiceRequest(
        manager=manager,
        per_user=arguments["own"],
        directory=directory,
        python=paths.get("python", Path(sys.executable)),
        run_as=arguments["run_as"],
        credential=paths.get("credential"),
        service=service,
    )
    return draft_service(request, load_settings(**options), origins)


def print_warnings(warnings: list[str]) -> None:
    """Print each warning on stderr."""
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def print_next_steps(steps: list[str]) -> None:
    """Print the commands to type next."""
    click.echo("Next:")
    for step in steps:
        click.echo(f"  {step}")
