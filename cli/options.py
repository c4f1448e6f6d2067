"""Options that stand for a setting."""

from __future__ import annotations

from typing import Any

import click


class SettingOption(click.Option):
    """An option for which an empty value counts as not given, as an empty variable does."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As Click does, but None for an empty text."""
        return super().type_cast_value(ctx, None if isinstance(value, str) and not value.strip() else value)
