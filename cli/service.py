"""`service`: the files that make systemd or supervisord run the daemon or the fleet, for a user's own paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
MANAGER_OPTIONS = (
    click.option("--fleet", is_flag=True, help="The fleet's service, not the daemon's."),
    click.option("--manager", type=click.Choice(["systemd", "supervisord"]), help="Default: systemd where it runs."),
    click.option("--user", "own", is_flag=True, help="A unit of your own, without root (systemd)."),
)
LAUNCH_OPTIONS = (
    click.option("--directory", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
                 help="Where .env is and relative paths begin. Default: here."),
    click.option("--python", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
                 help="The interpreter. Default: the one that runs this."),
    click.option("--run-as", metavar="NAME", help="The account. Default for root: the directory's owner, or forecastd."),
    click.option("--credential", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="The file with the wallet's phrase, or the fleet's API keys, which systemd hands over."),
)  # fmt: skip
FILE_OPTIONS = (
    click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Where the file goes. Default: where the manager looks."),
    click.option("--force", is_flag=True, help="Also a file that somebody else wrote or changed."),
)  # fmt: skip


def with_options(*options: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    """Groups of options, in the order in which `--help` lists them."""

    def decorate(function: F) -> F:
        for option in reversed([item for group in options for item in group]):
            function = option(function)
        return function

    return decorate


@click.group(name="service")
def command() -> None:
    """Install the daemon, or the fleet, as a service, under systemd or supervisord."""


@command.command()
@with_options(MANAGER_OPTIONS, LAUNCH_OPTIONS, FILE_OPTIONS)
@click.pass_obj
def install(shared: dict[str, Any] | None, /, to: Path | None, force: bool, **arguments: Any) -> None:
    """Write the service file, and say what to type next."""
    from forecastd.service.installed import file_path
    from forecastd.service.installed import install as write

    manager = _manager(arguments["manager"], own=arguments["own"])
    path = file_path(
        manager, per_user=arguments["own"], directory=to and to.absolute(), service=_service(fleet=arguments["fleet"])
    )
    draft = _draft(shared, manager, **arguments)
    write(path, draft.text, force=force)
    click.echo(f"Written: {path}")
    _print_warnings(draft.minds)
    _print_next_steps(draft.steps)


@command.command()
@with_options(MANAGER_OPTIONS, LAUNCH_OPTIONS)
@click.pass_obj
def show(shared: dict[str, Any] | None, /, **arguments: Any) -> None:
    """Print what `install` would write."""
    draft = _draft(shared, _manager(arguments["manager"], own=arguments["own"]), **arguments)
    click.echo(draft.text, nl=False)
    _print_warnings(draft.minds)


@command.command()
@with_options(MANAGER_OPTIONS, FILE_OPTIONS)
def uninstall(manager: Any, fleet: bool, own: bool, to: Path | None, force: bool) -> None:
    """Remove the service file that `install` wrote. State, logs and settings stay."""
    from forecastd.service.draft import steps_after_removal
    from forecastd.service.installed import file_path
    from forecastd.service.installed import uninstall as remove

    manager = _manager(manager, own=own)
    path = file_path(manager, per_user=own, directory=to, service=_service(fleet=fleet))
    remaining = remove(path, force=force)
    click.echo(f"Removed: {path}")
    click.echo(f"Left as they are: {', '.join(remaining) or 'state and logs, where .env puts them'}")
    _print_next_steps(steps_after_removal(manager, per_user=own))


def _manager(chosen: Any, *, own: bool) -> Any:
    from forecastd.service.installed import default_manager

    manager = chosen or ("systemd" if own else default_manager())
    if own and manager != "systemd":
        raise click.UsageError("supervisord has no units of a user's own: leave --user out and say --to DIR.")
    return manager


def _service(*, fleet: bool) -> Any:
    from forecastd.service.launch import DAEMON_SERVICE, FLEET_SERVICE

    return FLEET_SERVICE if fleet else DAEMON_SERVICE


def _draft(shared: dict[str, Any] | None, manager: Any, /, **arguments: Any) -> Any:
    from forecastd.service.draft import ServiceRequest, draft_service
    from forecastd.settings import load_settings, variable_sources

    service = _service(fleet=arguments["fleet"])
    if arguments["credential"] and manager != "systemd":
        raise click.UsageError(f"supervisord hands over no credentials: set {service.setting} in .env.")
    if arguments["own"] and (arguments["run_as"] or os.getuid() == 0):
        raise click.UsageError("--user is for a person's own service: it runs as that person, who is not root.")
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


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"Mind: {warning}", err=True)


def _print_next_steps(steps: list[str]) -> None:
    click.echo("Next:")
    for step in steps:
        click.echo(f"  {step}")
