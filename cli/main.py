"""The root command: a forecast cycle by its options, everything else by its sub-commands.

Sub-commands and everything they need are imported when they are called, so that `--help` costs Click and nothing else.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "train": ("cli.train", "Train a model and write it as a checked bundle."),
    "model": ("cli.model", "Check and describe model bundles."),
    "data": ("cli.data", "Fetch, inspect and export candles; serve a fake Tiingo."),
    "localnet": ("cli.localnet", "Run a local Allora node in the foreground."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports one only to run or describe it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])
