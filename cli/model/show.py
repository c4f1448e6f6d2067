"""`model show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.manifest import manifest_tables
from cli.model.common import DIRECTORY_ARGUMENT
from cli.options import json_option
from cli.rows import console
from forecastd.settings import load_settings
from models.bundle.files import read_manifest_bytes
from models.registry import read_any_manifest


@click.command(name="show")
@DIRECTORY_ARGUMENT
@json_option("The whole manifest as one JSON object.")
@click.pass_obj
def command(shared: dict[str, Any], /, directory: Path | None, as_json: bool) -> None:
    """Describe a bundle: its target, inputs, training data and scores."""
    path = load_settings(model=directory, **shared).model_path
    manifest = read_any_manifest(path)
    if as_json:
        click.echo(read_manifest_bytes(path).decode(), nl=False)
        return
    for table in manifest_tables(manifest):
        console().print(table)
