"""`model quarantine`: the bundles that are not run any more because they hung or crashed their processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from forecastd.inference.bundle_store import QuarantineEntry

MIN_PREFIX_LENGTH = 4  # characters of a sha256 that name a bundle


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
    from forecastd.inference.bundle_store import open_bundle_store
    from forecastd.settings import load_settings

    bundle_store = open_bundle_store(load_settings(**(shared or {})), SystemClock())
    quarantined = bundle_store.list_quarantined()
    bundles = (
        list(quarantined.values()) if release is None else bundle_store.release(_find_prefix(release, quarantined))
    )
    key = "quarantined" if release is None else "released"
    if as_json:
        click.echo(json.dumps({key: [asdict(bundle) for bundle in bundles]}))
        return
    _print_bundles(bundles, key)


def _find_prefix(text: str, quarantined: Mapping[str, QuarantineEntry]) -> str:
    """The start of the sha256 of what is to be released; empty for all."""
    if text == "all":
        return ""
    prefix = text.strip().lower()
    matches = [sha for sha in quarantined if len(prefix) >= MIN_PREFIX_LENGTH and sha.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    problem = f"several begin with {text}" if matches else f"no bundle in quarantine begins with {text!r}"
    names = ", ".join(sha[:12] for sha in quarantined) or "none"
    message = f"{problem} ({MIN_PREFIX_LENGTH} characters or more); there: {names}."
    raise click.BadParameter(message, param_hint="--release")


def _print_bundles(bundles: list[QuarantineEntry], key: str) -> None:
    from rich.text import Text

    from cli.rows import console, row

    for bundle in bundles:
        text = f"{bundle.name} ({bundle.sha256[:12]}), in quarantine since {bundle.since}"
        console().print(row("released" if key == "released" else "held", Text(f"{text}\n{bundle.reason}")))
    if not bundles:
        console().print(row("quarantine", Text("no bundle is in it")))
