"""`model quarantine`: the bundles that are not run any more because they hung or crashed their processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from forecastd.shelf import Quarantine

SHORTEST = 4  # characters of a sha256 that name a bundle


@click.command(name="quarantine")
@click.option("--release", metavar="SHA|all", help="Take a bundle out, by the start of its sha256; or all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_obj
def command(shared: dict[str, Any] | None, /, release: str | None, as_json: bool) -> None:
    """List the bundles in quarantine, or release one.

    A bundle comes here when its processes hung, died or gave bad answers three times with no good answer between. As long as
    it is here, and the topic has an earlier good model, that one runs instead. A worker that runs looks at the list when it
    is started again.
    """
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.shelf import open_shelf

    shelf = open_shelf(load_settings(**(shared or {})), SystemClock())
    held = shelf.quarantined()
    listed = list(held.values()) if release is None else shelf.release(_prefix(release, held))
    key = "quarantined" if release is None else "released"
    if as_json:
        click.echo(json.dumps({key: [asdict(one) for one in listed]}))
        return
    _print(listed, key)


def _prefix(text: str, held: Mapping[str, Quarantine]) -> str:
    """The start of the sha256 of what is to be released; empty for all."""
    if text == "all":
        return ""
    prefix = text.strip().lower()
    found = [sha for sha in held if len(prefix) >= SHORTEST and sha.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    told = f"several begin with {text}" if found else f"no bundle in quarantine begins with {text!r}"
    there = ", ".join(sha[:12] for sha in held) or "none"
    message = f"{told} ({SHORTEST} characters or more); there: {there}."
    raise click.BadParameter(message, param_hint="--release")


def _print(listed: list[Quarantine], key: str) -> None:
    from rich.text import Text

    from cli.screen import console, row

    for one in listed:
        told = f"{one.name} ({one.sha256[:12]}), in quarantine since {one.since}"
        console().print(row("released" if key == "released" else "held", Text(f"{told}\n{one.reason}")))
    if not listed:
        console().print(row("quarantine", Text("no bundle is in it")))
