"""A group of commands that is imported piece by piece: a command's module is loaded only to run or to describe it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

CommandTable = Mapping[str, tuple[str, str]]


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports one only to run or describe it."""

    def __init__(self, *arguments: Any, table: CommandTable, **options: Any) -> None:
        """`table`: the module of each command, which holds it as `command`, and its one-line help."""
        super().__init__(*arguments, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        command: click.Command = importlib.import_module(self._table[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][1]) for name in self.list_commands(ctx)])
