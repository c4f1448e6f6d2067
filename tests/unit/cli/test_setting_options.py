"""Options that stand for a setting: an empty one is as good as none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click
import pytest

from cli.main import COMMANDS
from cli.main import command as root_command
from cli.options import SettingOption
from forecastd.settings import Settings


def walk(command: click.Command) -> Iterator[click.Option]:
    yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))
    if isinstance(command, click.Group) and command is not root_command:
        for prefix in command.commands.values():
            yield from walk(prefix)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_setting_option_empty_value_counts_as_unset(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command if name else root_command
    with click.Context(command) as context:
        for option in walk(command):
            variable = (option.help or "").rpartition("[")[2].rstrip("]").lower()
            if variable in Settings.model_fields:
                assert isinstance(option, SettingOption), option.name
                assert option.type_cast_value(context, "") is None
                assert option.type_cast_value(context, " ") is None
