"""`fleet top`: the servers at most risk, live."""

from __future__ import annotations

from threading import Event

import click

from cli.options import SettingOption


@click.command(name="top")
@click.option("--url", metavar="URL", help="The service. Default: this machine, at FLEET_PORT.")
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="Its API key. Default: the first of FLEET_API_KEYS.")
@click.option("--servers", type=click.IntRange(1, 1000), metavar="N", help="How many. Default: what fits.")
@click.option("--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, metavar="SECONDS",
              help="How often it is shown anew.")  # fmt: skip
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.pass_context
def command(
    ctx: click.Context, /, url: str | None, api_key: str | None, servers: int | None, interval: float, once: bool
) -> None:
    """The servers at most risk, until Ctrl-C: now, and what the forecast says.

    A cell has bars from now to the horizon's end (p50), the value now, and the highest p90 ahead. In the column `ahead`
    is when a server becomes critical by its p50, dim by its p90.
    """
    from cli.fleet.client import make_client
    from cli.fleet.watch import TopMonitor
    from cli.live import show_live
    from cli.rows import console
    from cli.signals import single_interrupt
    from forecastd.settings import load_valid_settings

    settings, _ = load_valid_settings(**(ctx.obj or {}))
    watching = TopMonitor(make_client(settings, url, api_key), servers)
    with single_interrupt():
        if once:
            console().print(watching.first_screen())
        else:
            watching.first_screen()
            show_live(watching.next_screen, Event(), interval)
