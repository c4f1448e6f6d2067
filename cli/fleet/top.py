"""`fleet top`: the servers at most risk, refreshed live."""

from __future__ import annotations

import click

from cli.options import SettingOption


@click.command(name="top")
@click.option("--url", metavar="URL", help="The URL of the fleet (default: this machine, at FLEET_PORT).")
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="The API key (default: the first of FLEET_API_KEYS).")
@click.option(
    "--servers", type=click.IntRange(1, 1000), metavar="N", help="Number of servers (default: as many as fit)."
)
@click.option("--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, metavar="SECONDS",
              help="Time between two refreshes.")  # fmt: skip
@click.option("--once", is_flag=True, help="Print one screen and exit.")
@click.pass_context
def command(
    ctx: click.Context, /, url: str | None, api_key: str | None, servers: int | None, interval: float, once: bool
) -> None:
    """Show the servers at most risk, now and as forecast, until Ctrl-C.

    A cell has bars from now to the end of the horizon (p50), the current value, and the highest p90 ahead. The column
    `ahead` is the time until a server becomes critical by its p50, dim by its p90.
    """
    from cli.fleet.top_screen import show_top  # with pydantic and rich, which --help does not need

    show_top(ctx.obj or {}, url, api_key, servers=servers, interval=None if once else interval)
