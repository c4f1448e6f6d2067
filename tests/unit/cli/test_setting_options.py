"""Options that set a setting: an empty value counts as unset."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click
import pytest

from cli.main import COMMANDS
from cli.main import command as root_command
from cli.options import SettingOption
from forecastd.settings import DEFAULTS


def walk(command: click.Command) -> Iterator[click.Option]:
    """All options of a command and of its sub-commands."""
    yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))
    if isinstance(command, click.Group) and command is not root_command:
        with click.Context(command) as context:
            for name in command.list_commands(context):
                subcommand = command.get_command(context, name)
                assert subcommand is not None
                yield from walk(subcommand)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_setting_option_empty_value_counts_as_unset(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command if name else root_command
    with click.Context(command) as context:
        for option in walk(command):
            if (option.help or "").rpartition("[")[2].rstrip("]") in DEFAULTS:
                assert isinstance(option, SettingOption), option.name
                assert option.type_cast_value(context, "") is None
                assert option.type_cast_value(context, " ") is None
