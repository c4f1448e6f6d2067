"""`data fetch`."""

from __future__ import annotations

from typing import Any

import click

from cli.data.common import load_report, print_report, range_options
from cli.options import json_option


@click.command(name="fetch")
@range_options
@json_option()
@click.pass_obj
def command(shared: dict[str, Any], /, as_json: bool, **options: Any) -> None:
    """Update the rolling window.

    Only missing candles are requested from the source.
    """
    _, report = load_report(shared, **options)
    print_report(report, as_json=as_json, checks=False)
