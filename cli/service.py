"""`service`: the files that make systemd or supervisord run the daemon or the fleet, for a user's own paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
MANAGER = (
    click.option("--fleet", is_flag=True, help="The fleet's service, not the daemon's."),
    click.option("--manager", type=click.Choice(["systemd", "supervisord"]), help="Default: systemd where it runs."),
    click.option("--user", "own", is_flag=True, help="A unit of your own, without root (systemd)."),
)
LAUNCH = (
    click.option("--directory", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
                 help="Where .env is and relative paths begin. Default: here."),
    click.option("--python", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
                 help="The interpreter. Default: the one that runs this."),
    click.option("--run-as", metavar="NAME", help="The account. Default for root: the directory's owner, or forecastd."),
    click.option("--credential", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="The file with the wallet's phrase, or the fleet's API keys, which systemd hands over."),
)  # fmt: skip
FILE = (
    click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Where the file goes. Default: where the manager looks."),
    click.option("--force", is_flag=True, help="Also a file that somebody else wrote or changed."),
)  # fmt: skip


def taking(*options: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    """Groups of options, in the order in which `--help` lists them."""

    def decorate(function: F) -> F:
        for option in reversed([one for group in options for one in group]):
            function = option(function)
        return function

    return decorate


@click.group(name="service")
def command() -> None:
    """Install the daemon, or the fleet, as a service, under systemd or supervisord."""


@command.command()
@taking(MANAGER, LAUNCH, FILE)
@click.pass_obj
def install(shared: dict[str, Any] | None, /, to: Path | None, force: bool, **asked: Any) -> None:
    """Write the service file, and say what to type next."""
    from forecastd.service.installed import install as write
    from forecastd.service.installed import place

    manager = _manager(asked["manager"], own=asked["own"])
    path = place(manager, own=asked["own"], directory=to and to.absolute(), service=_service(fleet=asked["fleet"]))
    draft = _draft(shared, manager, **asked)
    write(path, draft.text, force=force)
    click.echo(f"Written: {path}")
    _mind(draft.minds)
    _next(draft.steps)


@command.command()
@taking(MANAGER, LAUNCH)
@click.pass_obj
def show(shared: dict[str, Any] | None, /, **asked: Any) -> None:
    """Print what `install` would write."""
    draft = _draft(shared, _manager(asked["manager"], own=asked["own"]), **asked)
    click.echo(draft.text, nl=False)
    _mind(draft.minds)


@command.command()
@taking(MANAGER, FILE)
def uninstall(manager: Any, fleet: bool, own: bool, to: Path | None, force: bool) -> None:
    """Remove the service file that `install` wrote. State, logs and settings stay."""
    from forecastd.service.draft import steps_after_removal
    from forecastd.service.installed import place
    from forecastd.service.installed import uninstall as remove

    manager = _manager(manager, own=own)
    path = place(manager, own=own, directory=to, service=_service(fleet=fleet))
    left = remove(path, force=force)
    click.echo(f"Removed: {path}")
    click.echo(f"Left as they are: {', '.join(left) or 'state and logs, where .env puts them'}")
    _next(steps_after_removal(manager, own=own))


def _manager(chosen: Any, *, own: bool) -> Any:
    from forecastd.service.installed import default_manager

    manager = chosen or ("systemd" if own else default_manager())
    if own and manager != "systemd":
        raise click.UsageError("supervisord has no units of a user's own: leave --user out and say --to DIR.")
    return manager


def _service(*, fleet: bool) -> Any:
    from forecastd.service.launch import DAEMON, FLEET

    return FLEET if fleet else DAEMON


def _draft(shared: dict[str, Any] | None, manager: Any, /, **asked: Any) -> Any:
    from forecastd.service.draft import Wish, draft
    from forecastd.settings import given_names, load_settings

    service = _service(fleet=asked["fleet"])
    if asked["credential"] and manager != "systemd":
        raise click.UsageError(f"supervisord hands over no credentials: set {service.setting} in .env.")
    if asked["own"] and (asked["run_as"] or os.getuid() == 0):
        raise click.UsageError("--user is for a person's own service: it runs as that person, who is not root.")
    here = Path.cwd()
    paths = {name: here / asked[name] for name in ("directory", "python", "credential") if asked[name]}
    directory = paths.pop("directory", here)
    os.chdir(directory)
    options = {name: here / value for name, value in (shared or {}).items() if value}
    given = given_names() | {name.upper(): "an option" for name in options}
    wish = Wish(
        manager=manager,
        own=asked["own"],
        directory=directory,
        python=paths.get("python", Path(sys.executable)),
        run_as=asked["run_as"],
        credential=paths.get("credential"),
        service=service,
    )
    return draft(wish, load_settings(**options), given)


def _mind(minds: list[str]) -> None:
    for told in minds:
        click.echo(f"Mind: {told}", err=True)


def _next(steps: list[str]) -> None:
    click.echo("Next:")
    for step in steps:
        click.echo(f"  {step}")
