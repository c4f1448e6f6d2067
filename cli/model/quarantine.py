"""`model quarantine`: the bundles that are no longer run because they hung or crashed their processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from cli.options import json_option
from cli.rows import console, row
from forecastd.clock import SystemClock
from forecastd.inference.bundle_store import QuarantineEntry, open_bundle_store
from forecastd.settings import load_settings

MIN_PREFIX_LENGTH = 4  # characters of a sha256 that identify a bundle


@click.command(name="quarantine")
@click.option("--release", metavar="SHA|all", help="Release the bundle whose sha256 starts with SHA, or all.")
@json_option()
@click.pass_obj
def command(shared: dict[str, Any] | None, /, release: str | None, as_json: bool) -> None:
    """List the bundles in quarantine, or release them.

    A bundle is quarantined when its processes hung, crashed or gave invalid results three times without a valid result in
    between. While it is quarantined, the topic or the fleet uses its last good bundle, if there is one. A running worker
    or fleet reads the quarantine only when it starts.
    """
    bundle_store = open_bundle_store(load_settings(**(shared or {})), SystemClock())
    quarantined = bundle_store.list_quarantined()
    bundles = (
        list(quarantined.values()) if release is None else bundle_store.release(_find_prefix(release, quarantined))
    )
    key = "quarantined" if release is None else "released"
    if as_json:
        click.echo(json.dumps({key: [asdict(bundle) for bundle in bundles]}))
        return
    for bundle in bundles:
        text = f"{bundle.name} ({bundle.sha256[:12]}), in quarantine since {bundle.since}"
        label = "released" if release is not None else "bundle"
        console().print(row(label, Text(f"{text}\n{bundle.reason}")))
    if not bundles:
        console().print(row("quarantine", Text("empty")))


def _find_prefix(text: str, quarantined: Mapping[str, QuarantineEntry]) -> str:
    """The sha256 of the bundle to release; empty for all."""
    if text == "all":
        return ""
    prefix = text.strip().lower()
    matches = [sha for sha in quarantined if len(prefix) >= MIN_PREFIX_LENGTH and sha.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    problem = f"several bundles start with {text!r}" if matches else f"no bundle in quarantine starts with {text!r}"
    names = ", ".join(sha[:12] for sha in quarantined) or "none"
    message = f"{problem} (give {MIN_PREFIX_LENGTH} characters or more); in quarantine: {names}."
    raise click.BadParameter(message, param_hint="--release")
