"""What the `model` commands share."""

from __future__ import annotations

from pathlib import Path

import click

DIRECTORY_ARGUMENT = click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
