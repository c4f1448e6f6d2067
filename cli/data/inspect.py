"""`data inspect`."""

from __future__ import annotations

from typing import Any

import click

from cli.data.common import load_report, print_report, range_options
from cli.options import json_option
from forecastd.errors import ExitCode


@click.command(name="inspect")
@range_options
@json_option()
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Describe candles and run the checks of a forecast.

    The exit code is 4 when a check refuses them.
    """
    _, report = load_report(ctx.obj or {}, **options)
    print_report(report, as_json=as_json, checks=True)
    ctx.exit(ExitCode.REFUSED if any(report.checks.values()) else ExitCode.SUCCESS)
