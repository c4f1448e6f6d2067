"""`completion`: print the shell completion script of `forecastd`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL; load it with: eval "$(forecastd completion bash)"."""
    completion_class = get_completion_class(shell)
    if completion_class is None or ctx.parent is None:
        raise click.UsageError(f"No completion for {shell}. Use bash, zsh or fish.")
    click.echo(completion_class(ctx.parent.command, {}, "forecastd", "_FORECASTD_COMPLETE").source())
