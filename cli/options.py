"""Options that more than one command has, or that stand for a setting."""

from __future__ import annotations

from typing import Any

import click


class SettingOption(click.Option):
    """An option for which an empty value counts as not given, as an empty variable does."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As Click does, but None for an empty text."""
        return super().type_cast_value(ctx, None if isinstance(value, str) and not value.strip() else value)


def join_faults(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str:
    """The callback of an option that may be given again: its faults as one list with commas between, checked."""
    from forecastd.supervise.faults import parse_faults

    text = ",".join(values)
    try:
        parse_faults(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}. `forecastd supervise --faults` tells what each does.", ctx, param) from None
    return text
