"""The option class for settings."""

from __future__ import annotations

from typing import Any

import click


class SettingOption(click.Option):
    """An option that sets a setting. An empty value counts as unset, as an empty variable does."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As Click does, but None for an empty string."""
        return super().type_cast_value(ctx, None if isinstance(value, str) and not value.strip() else value)
