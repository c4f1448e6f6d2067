"""The options that several commands have, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from forecastd.clock import from_iso
from forecastd.errors import NeedsHuman

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
POSITIVE_INT = click.IntRange(min=1)
NETWORKS = click.Choice(["local", "testnet", "mainnet"])
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--features": ("FEATURES", {"help": "The list of feature names.", "type": PATH, "metavar": "FILE"}),
    "--log-dir": ("LOG_DIR", {"help": "The directory of the log.", "type": PATH, "metavar": "DIR"}),
    "--model": ("MODEL", {"help": "The model bundle.", "type": PATH, "metavar": "DIR"}),
    "--network": ("ALLORA_NETWORK", {"help": "The network.", "type": NETWORKS}),
    "--source": ("DATA_SOURCE", {"help": "The source of the candles.", "metavar": "SPEC"}),
    "--state-dir": ("STATE_DIR", {"help": "The directory of the state.", "type": PATH, "metavar": "DIR"}),
    "--topic-id": ("TOPIC_ID", {"help": "The topic.", "type": POSITIVE_INT, "metavar": "ID"}),
    "--topics": ("TOPICS_FILE", {"help": "A topics.toml.", "type": PATH, "metavar": "FILE"}),
}


class SettingOption(click.Option):
    """An option that sets a setting. An empty value counts as unset, as an empty variable does."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As Click does, but None for an empty string."""
        return super().type_cast_value(ctx, None if isinstance(value, str) and not value.strip() else value)


class ParsedParam(click.ParamType[Any]):
    """An option value that `parse` converts; it raises ValueError or NeedsHuman when the value is invalid."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except (ValueError, NeedsHuman) as error:
            self.fail(f"{str(error).removesuffix('.')}.", param, ctx)


def setting_option(flag: str, variable: str = "", text: str = "", **options: Any) -> Callable[[F], F]:
    """An option that overrides a setting; its help names the environment variable. The parameter has the variable's name.

    `_SETTINGS` has what is not given here.
    """
    known_variable, known_options = _SETTINGS.get(flag, ("", {}))
    variable = variable or known_variable
    options = known_options | options | ({"help": text} if text else {})
    options["help"] = f"{options['help']}  [{variable}]"
    return click.option(flag, variable.lower(), cls=SettingOption, **options)


def json_option(text: str = "One JSON object on stdout.") -> Callable[[F], F]:
    """The option `--json`, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def join_faults(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str:
    """The callback of a repeated option: its faults as one comma-separated list, validated."""
    from forecastd.supervise.faults import parse_faults  # with numpy, which --help does not need

    text = ",".join(values)
    try:
        parse_faults(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}. List the faults with `forecastd supervise --faults`.", ctx, param) from None
    return text


def _parse_time(text: str) -> float:
    try:
        return from_iso(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 time, such as 2019-10-17T09:00:00Z") from None


TIME = ParsedParam("time", _parse_time)  # ISO 8601, as unix seconds
